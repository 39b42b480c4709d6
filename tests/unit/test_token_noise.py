"""What a model is shown of a row, and that it follows from the row's address alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from packed_rows import write_examples

from sbp_ray.artifacts import Artifact
from sbp_ray.attention import attend_within_documents, find_documents
from sbp_ray.config import ModelConfig, PretrainConfig
from sbp_ray.mixing import Address, Mixture
from sbp_ray.model import build_model
from sbp_ray.nll import find_targets, nll_of_each
from sbp_ray.text.pair_format import document_example
from sbp_ray.text.tokenizer import SpecialIds
from sbp_ray.training.loss import SupervisedLanguageModel
from sbp_ray.training.packed import read_packed
from sbp_ray.training.rows import RowReader, assign_rows
from sbp_ray.training.token_noise import TokenNoise, find_noise

SPECIAL = SpecialIds(0, 1, 5)
CONFIG = PretrainConfig(seq_len=32, batch_rows=4, total_tokens=1, peak_lr=1.0, token_noise=0.3, seed=7)
ROW_T = np.array([0, *range(6, 40), 1] * 100)
ADDRESS = Address("real", 2, 1, 17)


def noise(*, rate: float = 0.3, is_masked: bool = False, num_tokens: int = 50) -> TokenNoise:
    return TokenNoise(rate, is_masked, num_tokens, SPECIAL, seed=7)


def test_about_the_share_of_the_tokens_is_shown_as_others_and_no_mark_is_touched_or_drawn() -> None:
    """3,400 text tokens of which 0.3 are hit: 1,020, give or take 4 standard deviations of 27."""
    shown_T = noise().show(ROW_T, ADDRESS)
    is_other_T = shown_T != ROW_T
    assert abs(is_other_T.sum() - 1020) < 4 * 27
    assert not is_other_T[np.isin(ROW_T, SPECIAL)].any()
    assert {*shown_T[is_other_T].tolist()} == {*range(50)} - {*SPECIAL}


def test_another_token_is_any_other_one_with_the_same_chance() -> None:
    """Of the tokens 2, 3, 4 a 3 is shown as 2 or 4, never as itself."""
    shown_T = TokenNoise(0.999999, False, 5 + 1, SPECIAL, seed=0).show(np.full(10_000, 3), ADDRESS)
    counts = np.bincount(shown_T, minlength=6)
    assert counts[[0, 1, 3, 5]].tolist() == [0, 0, 0, 0]
    assert abs(counts[2] - 5000) < 4 * 50  # 4 standard deviations


def test_a_mask_is_a_token_that_no_document_holds() -> None:
    shown_T = noise(is_masked=True).show(ROW_T, ADDRESS)
    assert {*shown_T[shown_T != ROW_T].tolist()} == {SPECIAL.related}


def test_each_time_a_row_is_read_other_tokens_are_hit_and_the_same_address_shows_the_same() -> None:
    shown = [noise().show(ROW_T, ADDRESS._replace(epoch=epoch)) for epoch in (0, 1, 0)]
    assert np.array_equal(shown[0], shown[2])
    assert not np.array_equal(shown[0], shown[1])
    assert not np.array_equal(shown[0], noise().show(ROW_T, ADDRESS._replace(position=18)))


def test_without_a_rate_there_is_no_noise() -> None:
    assert find_noise(CONFIG.model_copy(update={"token_noise": None}), 50, SPECIAL) is None
    found = find_noise(CONFIG.model_copy(update={"noise_masks": True}), 50, SPECIAL)
    assert found == TokenNoise(0.3, True, 50, SPECIAL, 7)


@pytest.fixture
def out(new_artifact: Callable[[str], Artifact]) -> Artifact:
    made = new_artifact("lm")
    rng = np.random.default_rng(0)
    for shard in range(2):
        examples = [document_example(rng.integers(6, 50, rng.integers(3, 28)), SPECIAL) for _ in range(40)]
        write_examples(made, "real", examples, 32, shard=shard)
    return made


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_any_number_of_ranks_and_a_run_that_resumes_show_the_same(out: Artifact, num_ranks: int) -> None:
    mixture = Mixture(read_packed(out, "real").source, None, 40 * 4, 0, 0)
    alone = RowReader(out, CONFIG, noise())
    steps = {step: alone.batch(assign_rows(mixture, step, 4, 0, 1)) for step in range(1, 41)}
    readers = [RowReader(out, CONFIG, noise()) for _ in range(num_ranks)]
    for step in (40, 17, 18):
        whole, shown = steps[step], {}
        for rank, reader in enumerate(readers):
            part = reader.batch(assign_rows(mixture, step, 4, rank, num_ranks))
            assert part.shown_ids_BT is not None
            shown |= dict(zip(part.addresses, part.shown_ids_BT.tolist(), strict=True))
        assert whole.shown_ids_BT is not None
        assert [shown[address] for address in whole.addresses] == whole.shown_ids_BT.tolist()
        assert not torch.equal(whole.shown_ids_BT, whole.input_ids_BT)


def test_what_must_be_said_stays_as_it_is_while_other_tokens_are_shown(out: Artifact) -> None:
    """Beside the plain model: the NLL of the row's own tokens, each after what was shown before it."""
    shape = {"num_layers": 1, "hidden_size": 16, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8, "ffn_size": 16}
    lm = build_model(ModelConfig(**shape, max_positions=32), 64, SPECIAL, seed=0)
    ids = torch.arange(6, 26)[None]
    shown = ids.clone()
    shown[0, ::3] = 41
    with torch.no_grad():
        hidden = lm.model(input_ids=shown, use_cache=False).last_hidden_state[0, :-1]
        expected = nll_of_each(hidden, lm.lm_head.weight, ids[0, 1:])
        attend_within_documents(lm)
        mask = torch.ones_like(ids, dtype=torch.bool)
        mask[0, 0] = False
        found = SupervisedLanguageModel(lm)(ids, find_targets(ids, mask), find_documents(torch.zeros_like(ids)), shown)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
