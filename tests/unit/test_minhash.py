from __future__ import annotations

import hashlib
import math
import tracemalloc

import numpy as np
import pytest

from sbp_ray.text.minhash import (
    NUM_HASHES,
    document_signature,
    estimate_containment,
    estimate_jaccard,
    signature,
)

NUM_PAIRS = 200


def standard_error(jaccard: float) -> float:
    agree = jaccard + (1 - jaccard) / 256
    return math.sqrt(agree * (1 - agree) / 256) * 256 / 255


def random_shingles(rng: np.random.Generator, number: int) -> np.ndarray:
    return rng.integers(0, 2**64, number, np.uint64)


def estimates(size: int, common: int) -> np.ndarray:
    """Of many random pairs of sets of `size`, which share `common`."""
    rng = np.random.default_rng(size * 1000 + common)
    all_shingles = [random_shingles(rng, 2 * size - common) for _ in range(NUM_PAIRS)]
    a_MH = np.stack([signature(shingles[:size]) for shingles in all_shingles])
    b_MH = np.stack([signature(shingles[size - common :]) for shingles in all_shingles])
    return estimate_jaccard(a_MH, b_MH)


@pytest.mark.parametrize("size", [40, 300, 2000])  # the second and the third take more than one block
@pytest.mark.parametrize("shared", [0.2, 0.5, 0.75, 0.95])
def test_estimates_are_unbiased_and_as_exact_as_stated(size: int, shared: float) -> None:
    common = round(shared * size)
    jaccard = common / (2 * size - common)
    found = estimates(size, common)
    error = standard_error(jaccard)
    assert found.mean() == pytest.approx(jaccard, abs=4 * error / math.sqrt(NUM_PAIRS))
    assert found.std() == pytest.approx(error, rel=0.25)
    assert np.abs(found - jaccard).max() < 5 * error


def test_the_standard_error_at_the_default_threshold_is_the_documented_one() -> None:
    assert standard_error(0.6) == pytest.approx(0.031, abs=0.0005)
    assert [round(standard_error(j), 3) for j in (0, 0.1, 0.9)] == [0.004, 0.019, 0.019]


def test_equal_sets_are_certain_and_disjoint_ones_near_nothing() -> None:
    assert (estimates(50, 50) == 1).all()
    disjoint = estimates(300, 0)
    assert disjoint.min() == 0  # clipped: fewer bytes than by chance agree
    assert disjoint.max() < 0.03


def test_order_and_repeats_change_nothing() -> None:
    rng = np.random.default_rng(1)
    shingles = random_shingles(rng, 700)
    shuffled = rng.permutation(np.concatenate([shingles, shingles[:100]]))
    np.testing.assert_array_equal(signature(shuffled), signature(shingles))


def test_a_signature_is_256_bytes_that_stay_the_same_from_version_to_version() -> None:
    made = signature(np.arange(1, 1001, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    assert (made.dtype, made.shape) == (np.uint8, (NUM_HASHES,))
    assert hashlib.sha256(made.tobytes()).hexdigest()[:16] == "cea8a38d3e47b47e"


def test_an_empty_set_equals_an_empty_one_and_no_other() -> None:
    empty = signature(np.empty(0, np.uint64))
    assert empty.tolist() == [255] * NUM_HASHES
    one = signature(np.array([12345], np.uint64))
    assert estimate_jaccard(np.stack([empty, empty]), np.stack([empty, one])) == pytest.approx([1, 0], abs=0.03)


def test_sets_of_one_are_equal_or_not_even_where_their_last_bytes_agree() -> None:
    values = (np.random.default_rng(2).integers(0, 2**56, 400, np.uint64) << np.uint64(8)) | np.uint64(7)
    made = np.stack([signature(values[i : i + 1]) for i in range(len(values))])
    assert estimate_jaccard(made[:-1], made[1:]).max() < 0.04
    assert (estimate_jaccard(made, made) == 1).all()


def test_estimates_come_one_for_each_pair_over_all_blocks() -> None:
    rng = np.random.default_rng(3)
    a_MH = rng.integers(0, 256, (2500, NUM_HASHES), np.uint8)
    b_MH = a_MH.copy()
    num_changed_M = rng.integers(0, NUM_HASHES + 1, len(a_MH))
    b_MH[np.arange(NUM_HASHES) < num_changed_M[:, None]] += 1
    found = estimate_jaccard(a_MH, b_MH)
    share_M = 1 - num_changed_M / NUM_HASHES
    np.testing.assert_allclose(found, np.clip((share_M - 1 / 256) / (255 / 256), 0, 1), atol=1e-6)
    assert found.dtype == np.float32
    assert estimate_jaccard(a_MH[:0], b_MH[:0]).shape == (0,)


def test_signatures_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 256\) and \(1, 256\)"):
        estimate_jaccard(np.zeros((2, 256), np.uint8), np.zeros((1, 256), np.uint8))


def test_containment_is_the_share_of_the_smaller_one() -> None:
    # 30 shingles and 60, of which 15, all and none of the 30 are common; then nothing to share
    jaccard_M = np.array([15 / 75, 30 / 60, 0, 0], np.float32)
    found = estimate_containment(jaccard_M, np.array([30, 60, 30, 0]), np.array([60, 30, 60, 60]))
    assert found == pytest.approx([0.5, 1.0, 0.0, 0.0])
    assert found.dtype == np.float32
    assert estimate_containment(np.array([0.9]), np.array([10]), np.array([90])) == [1.0]  # J was overestimated


def test_memory_stays_small_for_a_long_document() -> None:
    shingles = random_shingles(np.random.default_rng(4), 100_000)
    tracemalloc.start()
    signature(shingles)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 << 20  # all ranks at once would be 100 MiB


def test_a_document_of_n_words_has_n_minus_12_shingles() -> None:
    made, number = document_signature(" ".join(map(str, range(40))), 13)
    assert number == 28
    assert made.shape == (NUM_HASHES,)


def test_case_white_space_and_punctuation_do_not_change_a_signature() -> None:
    made, number = document_signature("The Normans (Norman: Nourmands) were the people who", 3)
    other, other_number = document_signature("THE  NORMANS – Norman «Nourmands»\nwere\tthe people, who…", 3)
    np.testing.assert_array_equal(made, other)
    assert number == other_number == 6
