import math

import pytest
import torch
from tiny import MODEL, SEQ_LEN, documents

from sbp_ray.model import build_model
from sbp_ray.scoring import sum_nll
from sbp_ray.text.packing import pack_examples
from sbp_ray.text.pair_format import Example, document_example, pair_example
from sbp_ray.text.tokenizer import SpecialIds
from sbp_ray.training.attention import attend_within_documents, find_documents
from sbp_ray.training.loss import GradedLanguageModel, summed_cross_entropy

SPECIAL = SpecialIds(0, 1, 2)
VOCAB = 320


def tiny_lm(*, uniform: bool = False):
    lm = build_model(MODEL.model_copy(update={"tie_embeddings": False}), VOCAB, SPECIAL, seed=0)
    if uniform:
        torch.nn.init.zeros_(lm.lm_head.weight)  # every token is as likely as any other
    return lm


def packed_nll(lm, examples: list[Example]) -> float:
    """What the training loop computes for the rows that the examples pack into."""
    attend_within_documents(lm)
    rows, _ = pack_examples(examples, SEQ_LEN)
    input_ids_BT, loss_mask_BT, document_ids_BT = (torch.tensor(rows[name].to_pylist()) for name in rows.column_names)
    with torch.no_grad():
        return GradedLanguageModel(lm)(input_ids_BT, loss_mask_BT, find_documents(document_ids_BT)).item()


def test_uniform_logits_cost_ln_v_for_each_graded_token() -> None:
    nll = packed_nll(tiny_lm(uniform=True), [document_example([5, 6, 7], SPECIAL)])
    assert nll == pytest.approx(4 * math.log(VOCAB))  # three tokens and <eos>


def test_d1_is_never_graded() -> None:
    pair = pair_example([5] * 9, [7, 8], SPECIAL, SEQ_LEN)
    assert pair is not None
    assert packed_nll(tiny_lm(uniform=True), [pair]) == pytest.approx(3 * math.log(VOCAB))  # two tokens and <eos>


def test_packed_documents_cost_what_they_cost_alone() -> None:
    examples = [document_example(ids, SPECIAL) for ids in documents(40)]
    alone = sum_nll(tiny_lm(), examples, batch_tokens=1)  # the plain model, one document at a time
    assert packed_nll(tiny_lm(), examples) == pytest.approx(alone.sum(), rel=1e-6)


def test_scores_do_not_depend_on_the_batch() -> None:
    examples = [document_example(ids, SPECIAL) for ids in documents(20)]
    lm = tiny_lm()
    assert sum_nll(lm, examples, batch_tokens=10_000) == pytest.approx(sum_nll(lm, examples, batch_tokens=1), rel=1e-5)


def test_a_score_has_its_examples_place() -> None:
    examples = [document_example([5] * n, SPECIAL) for n in (3, 9, 1)]
    scores = sum_nll(tiny_lm(uniform=True), examples, batch_tokens=64)
    assert scores == pytest.approx([4 * math.log(VOCAB), 10 * math.log(VOCAB), 2 * math.log(VOCAB)])


@pytest.mark.parametrize("logits_at_once", [VOCAB, 3 * VOCAB, 2**20])
def test_loss_and_gradients_in_chunks_are_those_of_plain_cross_entropy(logits_at_once: int) -> None:
    torch.manual_seed(0)
    hidden_GD = torch.randn(7, 16, requires_grad=True)
    weight_VD = torch.randn(VOCAB, 16, requires_grad=True)
    targets_G = torch.randint(VOCAB, (7,))
    plain = torch.nn.functional.cross_entropy(hidden_GD @ weight_VD.T, targets_G, reduction="sum")
    expected = torch.autograd.grad(plain * 0.5, [hidden_GD, weight_VD])
    ours = summed_cross_entropy(hidden_GD, weight_VD, targets_G, logits_at_once)
    found = torch.autograd.grad(ours * 0.5, [hidden_GD, weight_VD])
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(found, expected)


def test_shapes_that_disagree_are_refused() -> None:
    with pytest.raises(ValueError, match="disagree"):
        summed_cross_entropy(torch.zeros(3, 4), torch.zeros(8, 4), torch.zeros(2, dtype=torch.int64))
