from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest

from sbp_ray.artifacts import Artifact
from sbp_ray.evaluation.arms import Scores, document_windows
from sbp_ray.evaluation.comparison import compare_arms, held_out_table
from sbp_ray.evaluation.draws import draw_rows, rank
from sbp_ray.evaluation.duplicates import duplicate_shares
from sbp_ray.evaluation.flow import loss_curve, stage_rows
from sbp_ray.evaluation.intervals import bootstrap_ratio
from sbp_ray.evaluation.novelty import add_counts, count_documents, flatten, ngram_table, novel_shares
from sbp_ray.evaluation.quality import copying, irrelevance, irrelevance_threshold, random_cosines, text_measures
from sbp_ray.text.pair_format import Example
from sbp_ray.text.tokenizer import SpecialIds

SPECIAL = SpecialIds(bos=0, eos=1, related=2)


# Intervals


def test_equal_units_leave_no_doubt() -> None:
    assert bootstrap_ratio([2.0, 2.0, 2.0]) == (2.0, 2.0, 2.0)


def test_the_interval_of_a_mean_is_two_standard_errors_wide() -> None:
    found = bootstrap_ratio([0.0, 1.0] * 200)  # standard error 0.5 / sqrt(400) = 0.025
    assert found.value == 0.5
    assert found.low == pytest.approx(0.5 - 1.96 * 0.025, abs=0.005)
    assert found.high == pytest.approx(0.5 + 1.96 * 0.025, abs=0.005)


def test_a_ratio_weighs_units_by_their_size() -> None:
    assert bootstrap_ratio([3.0, 1.0], [1, 3]).value == 1.0  # not the mean of 3 and 1/3


def test_the_interval_is_the_same_again_and_for_many_units() -> None:
    values = np.random.default_rng(0).normal(size=5000)
    assert bootstrap_ratio(values, seed=3) == bootstrap_ratio(values, seed=3)


@pytest.mark.parametrize(("numerator", "denominator"), [([], []), ([1.0], [1.0, 2.0])])
def test_nothing_to_draw_from_is_an_error(numerator: list[float], denominator: list[float]) -> None:
    with pytest.raises(ValueError, match="numerators"):
        bootstrap_ratio(numerator, denominator)


# Arms


def test_arms_are_compared_a_token_and_a_byte() -> None:
    scores = {
        "repetition": Scores({"train": np.array([4.0, 8.0])}, num_parameters=1),
        "sbp": Scores({"train": np.array([2.0, 4.0])}, num_parameters=1),
    }
    table = compare_arms(scores, "train", {"token": np.array([1, 2]), "byte": np.array([4, 8])}, seed=0)
    assert table["arms"]["repetition"] == {"nats_per_token": 4.0, "nats_per_byte": 1.0, "perplexity": math.exp(4)}
    assert table["arms"]["sbp"]["nats_per_byte"] == 0.5
    # both documents differ by 2 nats a token and half a nat a byte, whichever is drawn
    assert table["difference"]["nats_per_token"] == {"value": -2.0, "low": -2.0, "high": -2.0}
    assert table["difference"]["nats_per_byte"]["high"] == -0.5
    assert (table["units"], table["tokens"], table["bytes"]) == (2, 3, 12)


def test_bytes_are_counted_in_utf_8() -> None:
    text_sets = {"held_out": [[Example([0, 5, 6], [False, True, True])]]}
    scores = {arm: Scores({"held_out": np.array([math.log(2) * 6])}, 1) for arm in ("repetition", "sbp")}
    table = held_out_table(["é€"], text_sets, scores, seed=0)  # 2 + 3 bytes
    assert table is not None
    assert table["bytes"] == 5
    assert table["arms"]["sbp"]["bits_per_byte"] == pytest.approx(6 / 5)


def test_without_held_out_documents_there_is_no_perplexity() -> None:
    assert held_out_table([], {"held_out": []}, {}, seed=0) is None


def test_a_long_document_is_graded_once_in_windows() -> None:
    windows = document_windows([3, 4, 5, 6, 7], SPECIAL, max_tokens=4)
    assert [window.input_ids for window in windows] == [[0, 3, 4], [0, 5, 6], [0, 7, 1]]
    assert sum(sum(window.loss_mask) for window in windows) == 6  # five tokens and the end
    assert document_windows([3, 4], SPECIAL, max_tokens=4) == [Example([0, 3, 4, 1], [False, True, True, True])]


# Quality


def test_exact_and_near_duplicates_are_told_apart() -> None:
    long = list(range(100))
    almost = [*range(99), 500]  # shares 87 of 88 shingles: Jaccard 87 / 89
    other = list(range(1000, 1100))
    shares = duplicate_shares([long, long, almost, other], min_jaccard=0.6, shingle_tokens=13)
    assert shares == {"exact": 0.25, "near": 0.25}
    assert duplicate_shares([long, almost], min_jaccard=0.99, shingle_tokens=13)["near"] == 0


def test_copying_is_the_share_of_d2_that_d1_holds() -> None:
    d1 = list(range(20))
    half = [*range(16), *range(100, 116)]  # 4 of its 20 shingles of 13 tokens lie in d1
    found = copying([(d1, d1), (d1, half), (d1, list(range(50, 80)))], shingle_tokens=13, seed=0)
    assert found["copied_share"]["value"] == pytest.approx((1 + 0.2 + 0) / 3)
    assert found["copies"]["value"] == pytest.approx(1 / 3)
    assert found["any_copied"]["value"] == pytest.approx(2 / 3)


def test_pairs_no_closer_than_chance_are_irrelevant() -> None:
    threshold = irrelevance_threshold(np.linspace(0, 1, 101))
    assert threshold == pytest.approx(0.95)
    found = irrelevance([0.99, 0.5, 0.96, 0.1], threshold, seed=0)
    assert found["irrelevant"]["value"] == 0.5
    assert found["mean_cosine"]["value"] == pytest.approx(0.6375)


def test_random_pairs_never_pair_a_text_with_itself() -> None:
    cosines_N = random_cosines(np.eye(5, dtype=np.float32), seed=0)  # every other vector is at right angles
    assert cosines_N.tolist() == [0.0] * 5


def test_lengths_and_repetition_of_a_sample() -> None:
    measures = text_measures([[1, 2, 3, 4], [7] * 8], shingle_tokens=13, seed=0)
    assert measures is not None
    assert measures["tokens"]["mean"] == 6
    assert measures["repetition"]["value"] == pytest.approx((0 + 4 / 5) / 2)  # five runs of 7 7 7 7, one is new
    assert text_measures([], shingle_tokens=13, seed=0) is None


# Novel n-grams


def test_novel_runs_are_those_no_document_holds() -> None:
    sample = [[1, 2, 3, 9]]
    table = ngram_table(sample)
    counts = count_documents(table, *flatten([[1, 2, 3], [3, 4]]))
    shares = novel_shares(sample, table, counts, own=0)
    assert shares["1"] == 0.25  # 9
    assert shares["2"] == pytest.approx(1 / 3)  # 3 9
    assert shares["4"] == 1
    assert shares["8"] is None  # the sample has no run so long


def test_a_training_document_does_not_count_as_its_own_source() -> None:
    sample = [[1, 2, 3, 4]]
    table = ngram_table(sample)
    alone = count_documents(table, *flatten([[1, 2, 3, 4]]))
    assert novel_shares(sample, table, alone, own=1)["2"] == 1
    shared = add_counts(alone, count_documents(table, *flatten([[1, 2, 8]])))
    assert novel_shares(sample, table, shared, own=1)["2"] == pytest.approx(2 / 3)  # 1 2 is elsewhere too


def test_runs_do_not_cross_from_one_document_into_the_next() -> None:
    table = ngram_table([[1, 2]])
    counts = count_documents(table, *flatten([[5, 1], [2, 5], []]))
    assert counts[2].tolist() == [0]


def test_a_run_that_stands_often_in_one_document_counts_once() -> None:
    table = ngram_table([[1, 1]])
    assert count_documents(table, *flatten([[1, 1, 1, 1]]))[2].tolist() == [1]


# Draws, flow


def test_a_draw_is_random_repeatable_and_without_replacement(tmp_path) -> None:
    artifact = Artifact("corpus", str(tmp_path))
    for shard in range(3):
        ids = [f"{shard}-{i}" for i in range(10)]
        artifact.write_table(f"train/part-{shard}.parquet", pa.table({"doc_id": ids, "n": list(range(10))}))

    def draw(limit: int, seed: int) -> list[str]:
        rows = draw_rows(artifact, "train", key=["doc_id"], columns=["doc_id"], limit=limit, seed=seed)
        return [row["doc_id"] for row in rows]

    assert draw(5, 0) == draw(5, 0) != draw(5, 1)
    assert len(set(draw(100, 0))) == 30
    assert draw(100, 0) == sorted(draw(100, 0), key=lambda doc_id: rank(doc_id, 0))


def test_drops_are_those_the_stage_added_up_or_else_its_splits(new_artifact) -> None:
    pairs, corpus = new_artifact("pairs"), new_artifact("corpus")
    split = {"pairs": 3, "drops": {"near": 1}}
    pairs.write_json("manifest.json", {"stats": {"drops": {"near": 2}, "train": split, "validation": split}})
    corpus.write_json("manifest.json", {"stats": {"drops": {}, "train": split, "validation": split}})
    rows = {row["artifact"]: row for row in stage_rows({"pairs": pairs, "corpus": corpus})}
    assert rows["pairs"]["drops"] == {"near": 2} == rows["corpus"]["drops"]
    assert rows["pairs"]["counts"] == {"pairs": 3}


def test_a_step_that_was_done_twice_is_one_point_of_the_curve(new_artifact) -> None:
    trained = new_artifact("lm")
    lines = ['{"step": 1, "tokens": 8, "loss_nats": 3.0}', '{"step": 2, "tokens": 16, "loss_nats": 2.0}'] * 2
    trained.write_bytes("metrics.jsonl", "\n".join(lines).encode())
    assert [point["step"] for point in loss_curve(trained)] == [1, 2]
    assert loss_curve(new_artifact("nothing")) == []
