"""The parts of the search, each beside brute force in NumPy."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from sbp_ray.neighbors import cells, group, joining, partition, probing, quantize
from sbp_ray.neighbors.cells import find_cells, nearest_cells
from sbp_ray.neighbors.exact_search import ExactSearch
from sbp_ray.neighbors.group import Control, Effort, search_group
from sbp_ray.neighbors.listing import merge_lists
from sbp_ray.neighbors.quantize import Quantizer, encode
from sbp_ray.neighbors.whole_group import search_whole_group

NO_CONTROL = Control(np.empty(0, np.int64), np.empty(0, np.int64))


def vectors_of_topics(num: int, dim: int = 24, seed: int = 0) -> np.ndarray:
    """Unit vectors, thirty or so of each topic."""
    rng = np.random.default_rng(seed)
    topics = rng.standard_normal((max(2, num // 30), dim))
    vectors = topics[rng.integers(len(topics), size=num)] + 1.3 * rng.standard_normal((num, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def quantizer_of(vectors: np.ndarray) -> Quantizer:
    return Quantizer(float(np.abs(vectors).max()))


def brute_force(vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and rows of the nearest others, in float64."""
    cosine = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    np.fill_diagonal(cosine, -2)
    order = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(cosine, order, axis=1), order


def search(vectors: np.ndarray, k: int, effort: Effort, control: Control = NO_CONTROL, threads: int = 1) -> np.ndarray:
    """Rows of the neighbours of each document, in the order of the documents."""
    found = search_group(encode(vectors), k, quantizer_of(vectors), effort, control, num_threads=threads)
    rows = np.full(found.row_NK.shape, -1)
    rows[found.order_N] = np.where(found.row_NK >= 0, found.order_N[found.row_NK], -1)
    return rows


def recall(rows: np.ndarray, truth: np.ndarray) -> float:
    return float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(rows, truth, strict=True)]))


def test_neighbours_of_neighbours_find_what_cells_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = vectors_of_topics(4000)
    _, truth = brute_force(vectors, 10)
    assert recall(search(vectors, 10, Effort(40, 2, 1.0)), truth) > 0.97
    monkeypatch.setattr(group, "ROUNDS", 0)
    assert recall(search(vectors, 10, Effort(40, 2, 1.0)), truth) < 0.9


def test_the_search_ends_once_the_controls_neighbours_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = vectors_of_topics(4000)
    _, truth = brute_force(vectors, 10)
    control = Control(np.repeat(np.arange(0, 4000, 8), 10), truth[::8].ravel())
    rounds = []
    join = group.join_lists
    monkeypatch.setattr(group, "join_lists", lambda *given: rounds.append(1) or join(*given))
    shares = [recall(search(vectors, 10, Effort(40, 2, wanted), control), truth) for wanted in (0.2, 0.93, 1.0)]
    assert shares[0] < 0.93 < shares[1] + 0.01 < shares[2] + 0.01
    num_rounds = len(rounds)
    rounds.clear()
    search(vectors, 10, Effort(40, 2, 0.2), control)
    assert not rounds and num_rounds > 2


@pytest.mark.parametrize("threads", [2, 3])
def test_the_graph_does_not_depend_on_the_number_of_threads(threads: int) -> None:
    vectors = vectors_of_topics(6000)
    effort = Effort(60, 3, 1.0)
    assert (search(vectors, 10, effort, threads=threads) == search(vectors, 10, effort)).all()


@pytest.mark.parametrize("threads", [2, 3])
def test_equally_near_documents_are_the_same_ones_whatever_the_threads(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Directions of zeros and ones only: most lists end among documents that are equally near."""
    monkeypatch.setattr(joining, "CHUNK", 32)  # 94 chunks, more than are carried out together
    vectors = np.sign(np.round(vectors_of_topics(3000, dim=12) * 1.5))
    vectors[:, 0] += np.abs(vectors).sum(axis=1) == 0
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    effort = Effort(40, 2, 1.0)
    assert (search(vectors, 10, effort, threads=threads) == search(vectors, 10, effort)).all()


def test_more_updates_than_a_buffer_holds_are_carried_out_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = vectors_of_topics(3000)
    effort = Effort(50, 2, 1.0)
    _, truth = brute_force(vectors, 10)
    monkeypatch.setattr(joining, "UPDATES_PER_LIST", 0)  # room for a single list
    assert recall(search(vectors, 10, effort), truth) > 0.97


def test_lists_without_cells_are_those_of_brute_force() -> None:
    vectors = vectors_of_topics(700)
    _, truth = brute_force(vectors, 12)
    assert (search(vectors, 12, Effort(700, 1, 1.0)) == truth).mean() > 0.999  # equal cosines may change places


def test_a_crowd_of_identical_documents_is_compared_in_parts() -> None:
    vectors = np.concatenate([np.repeat(vectors_of_topics(1), 3000, axis=0), vectors_of_topics(600, seed=1)])
    compared = []
    products = probing.products
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probing, "products", lambda a, b: compared.append(len(a) * len(b)) or products(a, b))
        rows = search(vectors, 5, Effort(50, 2, 1.0))
    assert (rows[:3000] < 3000).all()  # each has neighbours with a cosine of 1
    assert sum(compared) < 3600 * 50 * 4 * 2 * 1.5  # not 3,000 squared


def test_cells_of_regions_are_nearly_as_near_as_the_nearest_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = torch.from_numpy(quantizer_of(vectors_of_topics(3000)).coarse(encode(vectors_of_topics(3000))))
    monkeypatch.setattr(cells, "FLAT_CELLS", 50)
    with ThreadPoolExecutor(2) as pool:
        made = find_cells(vectors, 200, 0, pool)
        assert len(made.region_GD) > 1 and 150 < len(made.center_CD) <= 250
        chosen = nearest_cells(made, vectors, 3, pool)
    scores = vectors.numpy().astype(int) @ made.center_CD.numpy().astype(int).T
    assert (np.diff(np.take_along_axis(scores, chosen, axis=1), axis=1) <= 0).all()
    assert (scores.argmax(axis=1) == chosen[:, 0]).mean() > 0.9


def test_as_many_neighbours_meet_in_a_group_as_the_margin_was_chosen_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition, "CELLS_PER_GROUP", 8)  # a hundred documents of the sample in each, as in earnest
    vectors = vectors_of_topics(6000)
    quantizer = quantizer_of(vectors)
    coarse = quantizer.coarse(encode(vectors))
    _, truth = brute_force(vectors, 5)
    with ThreadPoolExecutor(1) as pool:
        made = partition.make_groups(coarse[:3000], quantizer, 4, 0, pool)
        margin = partition.choose_margin(made, vectors[3000:], coarse[3000:], 1000, 3, 0.95, pool)
        is_in = partition.measure_gaps(made, coarse, pool) <= margin
        lives_in = partition.measure_gaps(made, coarse, pool) == 0
    assert made.num_groups == 4
    met = (is_in[:, None] & is_in[truth]).any(axis=2).mean()
    assert 0.92 < met < 0.99
    assert 1 < is_in.sum(axis=1).mean() < 3
    assert (lives_in.sum(axis=1) >= 1).all()
    assert (np.abs(lives_in.mean(axis=0) - 0.25) < 0.06).all()  # groups of about equal size


@pytest.mark.parametrize("k", [1, 10, 100])
def test_the_exact_search_is_exact_block_after_block(k: int) -> None:
    vectors = vectors_of_topics(2500)
    ids = np.array([f"{row * 7919 % 99991:016d}" for row in range(2500)], "S16")
    queries = np.arange(0, 2500, 5)
    quantizer = Quantizer(0.6 * float(np.abs(vectors).max()))  # cuts some components: the bounds must allow for that
    with ThreadPoolExecutor(2) as pool:
        exact = ExactSearch(vectors[queries], ids[queries], k, quantizer, pool)
        for start in range(0, 2500, 700):
            block = vectors[start : start + 700]
            exact.show(block, quantizer.coarse(encode(block)), ids[start : start + 700])
    cosines, rows = brute_force(vectors, k)
    assert np.allclose(exact.result().cosine_QK, cosines[queries], atol=1e-6)
    assert (exact.result().id_QK == ids[rows[queries]]).mean() > 0.999


def test_merged_lists_hold_each_neighbour_once_nearest_first() -> None:
    """Documents 3 and 6 are found by both lists of the first document; the second has none."""
    cosines = np.array([[0.9, 0.5, 0.4], [0.7, -np.inf, -np.inf], [0.9, 0.6, 0.5]], np.float32)
    names = np.array([[3, 8, 9], [5, 0, 0], [3, 7, 6]])
    ids = np.array([[b"%016d" % name for name in row] for row in names], "S16")
    source = merge_lists(np.array([0, 2, 0]), cosines, ids, 3)
    assert source[0, 0] in (0, 6)
    assert [names.ravel()[place] for place in source[0]] == [3, 7, 6]  # 6 before 8: as near, and the lower id
    assert (source[1] == -1).all()
    assert [names.ravel()[place] for place in source[2][:1]] == [5] and (source[2][1:] == -1).all()


def test_products_keep_to_what_a_gpu_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's integer product wants more than 16 rows, and the other two sizes in multiples of 8."""
    multiply = torch._int_mm

    def on_cuda(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        assert len(rows) > 16
        assert columns.shape[0] % 8 == 0
        assert columns.shape[1] % 8 == 0
        return multiply(rows, columns)

    class OnCuda(torch.Tensor):
        is_cuda = True

    monkeypatch.setattr(torch, "_int_mm", on_cuda)
    rows, columns = (torch.from_numpy(np.random.default_rng(n).integers(-127, 128, (n, 24), np.int8)) for n in (3, 13))
    found = quantize.products(rows, columns.as_subclass(OnCuda))
    assert (found[:3] == rows.numpy().astype(int) @ columns.numpy().astype(int).T).all()


@pytest.mark.parametrize("dtype", [torch.int8, torch.float32])
@pytest.mark.parametrize("dim", [8, 1040, 1048, 2100])
def test_products_are_exact_in_either_arithmetic(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, dim: int) -> None:
    """The largest there are too: 2,100 x 127 x 127 is twice what float32 holds exactly."""
    monkeypatch.setattr(quantize, "choose_dtype", lambda use, wanted: dtype)
    vectors = np.random.default_rng(0).integers(-127, 128, (40, dim), np.int8)
    vectors[0], vectors[1] = 127, -127
    vectors[2] = np.where(np.arange(dim) % 2, 127, 126)
    rows, columns = torch.from_numpy(vectors[:20]), torch.from_numpy(vectors)
    expected = vectors[:20].astype(np.int64) @ vectors.T.astype(np.int64)
    assert (quantize.products(rows, columns)[:20] == expected).all()


def test_a_cosine_is_that_of_exact_arithmetic_whatever_the_processor() -> None:
    """So that a pair has the same cosine in every group, and counts once."""
    vectors = vectors_of_topics(300, dim=384)
    found = search_group(encode(vectors), 10, quantizer_of(vectors), Effort(300, 1, 1.0), NO_CONTROL)
    encoded = encode(vectors)[found.order_N].astype(object)  # Python's integers
    length = np.array([np.float32(1 / float(sum(x * x for x in row)) ** 0.5) for row in encoded])
    for row in range(0, 300, 29):
        for cosine, other in zip(found.cosine_NK[row], found.row_NK[row], strict=True):
            product = np.float32(int(encoded[row] @ encoded[other]))
            assert cosine == min(product * length[row] * length[other], np.float32(1))


def test_a_group_compared_as_a_whole_has_all_true_neighbours_and_the_cosines_of_every_search() -> None:
    vectors = vectors_of_topics(700, dim=24)
    vectors[100:130] = vectors[100]  # more copies than candidates: a document may not find itself among them
    encoded, k = encode(vectors), 7
    found = search_whole_group(encoded, k)
    assert found.order_N.tolist() == list(range(700))
    expected, _ = brute_force(vectors, k)
    np.testing.assert_allclose(found.cosine_NK, expected, atol=1e-4)
    assert not (found.row_NK == np.arange(700)[:, None]).any()
    by_cells = search_group(encoded, k, quantizer_of(vectors), Effort(700, 1, 1.0), NO_CONTROL)
    assert (found.cosine_NK[by_cells.order_N] == by_cells.cosine_NK).all()


@pytest.mark.parametrize("num", [1, 2, 5])
def test_a_group_of_a_few_documents_as_a_whole(num: int) -> None:
    found = search_whole_group(encode(vectors_of_topics(num)), 4)
    assert (found.row_NK >= 0).sum(axis=1).tolist() == [min(4, num - 1)] * num


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_finds_the_same_neighbours() -> None:
    vectors = vectors_of_topics(30_000, dim=48)
    effort = Effort(384, 8, 1.0)
    options = {"quantizer": quantizer_of(vectors), "effort": effort, "control": NO_CONTROL}
    on_cpu, on_gpu = (search_group(encode(vectors), 10, device=device, **options) for device in ("cpu", "cuda"))
    assert np.mean(on_cpu.row_NK == on_gpu.row_NK) > 0.99  # float32 sums move a centroid by a level now and then


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_compares_a_whole_group_as_a_cpu_does() -> None:
    pytest.importorskip("faiss")
    encoded = encode(vectors_of_topics(30_000, dim=48))
    on_cpu, on_gpu = (search_whole_group(encoded, 10, device=device) for device in ("cpu", "cuda"))
    assert (on_cpu.row_NK == on_gpu.row_NK).all()
