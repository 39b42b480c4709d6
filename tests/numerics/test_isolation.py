"""Documents of one row never see one another."""

import torch
from tiny import MODEL

from sbp_ray.attention import attend_within_documents, find_documents
from sbp_ray.model import build_model

DOCUMENT_IDS_BT = torch.tensor([[0] * 6 + [1] * 5 + [2] * 3 + [-1] * 2, [0] * 10 + [1] * 6])


def logits(input_ids_BT: torch.Tensor) -> torch.Tensor:
    lm = build_model(MODEL, 64, (0, 1, 2), seed=0)
    attend_within_documents(lm)
    documents = find_documents(DOCUMENT_IDS_BT)
    with torch.no_grad():
        return lm(
            input_ids=input_ids_BT,
            position_ids=documents.positions_BT,
            attention_mask=None,
            use_cache=False,
            bounds_N1=documents.bounds_N1,
        ).logits


def test_changing_d1_leaves_every_other_documents_logits_bit_identical() -> None:
    torch.manual_seed(0)
    before_BT = torch.randint(3, 64, DOCUMENT_IDS_BT.shape)
    after_BT = before_BT.clone()
    after_BT[0, 6:9] = (before_BT[0, 6:9] - 3 + 7) % 61 + 3  # d1 of the second pair of the first row
    before_BTV, after_BTV = logits(before_BT), logits(after_BT)
    own = torch.zeros_like(DOCUMENT_IDS_BT, dtype=torch.bool)
    own[0, 6:11] = True
    assert torch.equal(before_BTV[~own], after_BTV[~own])
    assert not torch.isclose(before_BTV[0, 9:11], after_BTV[0, 9:11]).all()  # its own d2 does see it


def test_a_packed_row_gives_the_logits_of_a_block_diagonal_mask() -> None:
    torch.manual_seed(1)
    input_ids_BT = torch.randint(3, 64, DOCUMENT_IDS_BT.shape)
    plain = build_model(MODEL, 64, (0, 1, 2), seed=0)
    same_BTT = DOCUMENT_IDS_BT[:, :, None] == DOCUMENT_IDS_BT[:, None, :]
    positions_BT = torch.tensor([[*range(6), *range(5), *range(3), *range(2)], [*range(10), *range(6)]])
    with torch.no_grad():
        expected = plain(
            input_ids=input_ids_BT,
            position_ids=positions_BT,
            attention_mask=torch.tril(same_BTT)[:, None],
            use_cache=False,
        ).logits
    torch.testing.assert_close(logits(input_ids_BT), expected, rtol=1e-5, atol=1e-6)


def test_documents_are_found_where_ids_change_and_where_rows_begin() -> None:
    documents = find_documents(torch.tensor([[0, 0, 1, -1], [0, 0, 0, 0]]))
    assert documents.bounds_N1.tolist() == [0, 2, 3, 4, 8]
    assert documents.positions_BT.tolist() == [[0, 1, 0, 0], [0, 1, 2, 3]]
