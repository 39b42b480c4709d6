"""The last steps of the search over files: the lists of a group's documents, and of a shard's.

`search_documents` finds the nearest of the documents of a group, describes each neighbour (`_describe`), and sorts the
lists into the buckets of the documents' shards; `merge_found` makes of the lists that all groups found for a document
the one that is kept (`_merge_lists`).
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from typing import Any, NamedTuple

import numba
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sbp_ray.artifacts import Artifact
from sbp_ray.buckets import bucket_writer, read_bucket
from sbp_ray.config import NeighborsConfig
from sbp_ray.doc_ids import ID, from_column, id_numbers, ids_to_numpy, places_of, to_column
from sbp_ray.neighbors.exact_search import Exact
from sbp_ray.neighbors.group import Control, Found, search_group
from sbp_ray.neighbors.histogram import cosine_histogram
from sbp_ray.neighbors.nearest_lists import NO_ROW
from sbp_ray.neighbors.partition import Partition
from sbp_ray.neighbors.quantize import blocks, new_pool
from sbp_ray.neighbors.search_files import (
    BATCH_ROWS,
    DESCRIBED,
    Scratch,
    found_schema,
    read_arrays,
    routed_schema,
)
from sbp_ray.neighbors.search_limits import refuse_small_machine
from sbp_ray.neighbors.search_plan import plan_effort, threads_of
from sbp_ray.neighbors.whole_group import MOST_DOCUMENTS, search_whole_group
from sbp_ray.schema import NEIGHBORS, SIGNATURE_BYTES
from sbp_ray.shards import Stats, shard_name
from sbp_ray.text.minhash import estimate_containment, jaccard_of

# N = documents, D = vector length, K = neighbours, M = lists, or neighbours of all lists


def search_documents(cfg: NeighborsConfig, _: Artifact, out: Artifact, item: dict[str, Any]) -> Stats:
    """Find the nearest of the documents of one group, and sort the lists by the documents' shards."""
    refuse_small_machine(item["worker_gib"], item["vram_gib"], item["scratch_gib"])
    k, group, dim = cfg.num_neighbors, item["group"], item["dim"]
    files = Scratch(item["split"], item["attempt"])
    made = Partition(**read_arrays(out, files.partition))
    routed = [files.routed(shard) for shard in range(item["num_shards"])]
    table = read_bucket(out, routed, group, routed_schema(dim))
    vectors_ND, documents = from_column(table.column("vector"), np.int16, dim), _Documents.of_table(table)
    del table  # its columns share their memory
    num_threads = threads_of(cfg.resources)
    if cfg.resources.num_gpus and 0 < len(vectors_ND) <= MOST_DOCUMENTS:
        found = search_whole_group(vectors_ND, k, num_threads=num_threads, device="cuda")
    else:
        exact = Exact(**read_arrays(out, files.exact))
        found = search_group(
            vectors_ND,
            k,
            made.quantizer,
            plan_effort(cfg, item["num_documents"], dim, item["attempt"], made.num_groups),
            _find_control(exact, made.query_id_Q, documents.id_N, cfg.recall_queries),
            seed=cfg.seed,
            num_threads=num_threads,
            device="cuda" if cfg.resources.num_gpus else "cpu",
        )
    del vectors_ND
    with bucket_writer(out, files.found(group), found_schema(k), compression=None) as writer:
        for rows in _describe(documents, found, k, num_threads):
            writer.write(*rows)
        writer.finish({"peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20})
    return {"documents": int((documents.home_N == group).sum())}


def _find_control(exact: Exact, query_id_Q: NDArray, id_N: NDArray, num_judging: int) -> Control:
    """Queries whose neighbours tell the search when to end, as far as they and their neighbours are in the group.

    They are those after the `num_judging` queries that judge the recall.
    """
    is_there_QK = exact.cosine_QK[num_judging:] > -np.inf
    query_M = np.repeat(query_id_Q[num_judging:], is_there_QK.sum(axis=1))
    place_M, other_M = places_of(query_M, id_N), places_of(exact.id_QK[num_judging:][is_there_QK], id_N)
    is_inside_M = (place_M >= 0) & (other_M >= 0)
    return Control(place_M[is_inside_M], other_M[is_inside_M])


class _Documents(NamedTuple):
    """What is known of the documents of a group beside their vectors."""

    signature_NH: NDArray[np.uint8]
    num_shingles_N: NDArray[np.int32]
    content_signature_NH: NDArray[np.uint8]
    num_content_words_N: NDArray[np.int32]
    group_hash_N: NDArray[np.uint64]
    row_N: NDArray[np.int64]
    id_N: NDArray[np.bytes_]
    home_N: NDArray[np.int32]

    @classmethod
    def of_table(cls, table: pa.Table) -> _Documents:
        """From rows of `routed_schema`."""
        runs_NH, words_NH = (
            from_column(table.column(name), np.uint8, SIGNATURE_BYTES) for name in ("signature", "content_signature")
        )
        shingles, words, groups, rows, homes = (
            table.column(name).to_numpy() for name in ("num_shingles", "num_content_words", "group_hash", "row", "home")
        )
        return cls(runs_NH, shingles, words_NH, words, groups, rows, ids_to_numpy(table.column("doc_id")), homes)

    def containments(
        self, own_R: NDArray[np.int64], other_RK: NDArray[np.int64], *, of_content: bool
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Jaccard index and containment of documents and their neighbours, by their shingles or by content words."""
        signature_NH = self.content_signature_NH if of_content else self.signature_NH
        number_N = self.num_content_words_N if of_content else self.num_shingles_N
        jaccard_RK = jaccard_of(_count_equal_bytes(signature_NH, own_R, other_RK))
        num_own_RK = np.broadcast_to(number_N[own_R][:, None], other_RK.shape)
        return jaccard_RK, estimate_containment(jaccard_RK, num_own_RK, number_N[other_RK])


def _describe(
    documents: _Documents, found: Found, k: int, num_threads: int
) -> Iterator[tuple[pa.Table, NDArray[np.int64]]]:
    """Rows of `found_schema`, and the shards of their documents."""
    group_N = documents.group_hash_N

    def describe(rows: slice) -> tuple[pa.Table, NDArray[np.int64]]:
        own_R, row_RK = found.order_N[rows], found.row_NK[rows]
        other_RK = np.where(row_RK == NO_ROW, NO_ROW, found.order_N[row_RK])
        jaccard_RK, containment_RK = documents.containments(own_R, other_RK, of_content=False)
        _, content_RK = documents.containments(own_R, other_RK, of_content=True)
        columns = [
            pa.array(documents.row_N[own_R]),
            to_column(documents.id_N[other_RK]),
            to_column(found.cosine_NK[rows]),
            to_column(jaccard_RK),
            to_column(containment_RK),
            to_column(content_RK),
            to_column(group_N[own_R][:, None] == group_N[other_RK]),
        ]
        return pa.table(columns, schema=found_schema(k)), documents.row_N[own_R] >> 32

    with new_pool(num_threads) as pool:
        yield from pool.map(describe, blocks(len(found.order_N), BATCH_ROWS))


@numba.njit(cache=True, nogil=True)
def _count_equal_bytes(signatures_NH, documents, row_RK):  # type: ignore[no-untyped-def]  # compiled
    """How many bytes of each document's signature equal its neighbours': int32[R, K], 0 where there is none."""
    equal_RK = np.zeros(row_RK.shape, np.int32)
    for r in range(row_RK.shape[0]):
        own = signatures_NH[documents[r]]
        for k in range(row_RK.shape[1]):
            if row_RK[r, k] != NO_ROW:
                other = signatures_NH[row_RK[r, k]]
                equal = np.int32(0)
                for h in range(own.shape[0]):
                    equal += np.int32(own[h] == other[h])
                equal_RK[r, k] = equal
    return equal_RK


def merge_found(cfg: NeighborsConfig, embeddings: Artifact, out: Artifact, item: dict[str, Any]) -> Stats:
    """Merge what the groups found for the documents of one shard."""
    split, shard, k = item["split"], item["shard"], cfg.num_neighbors
    files = Scratch(split, item["attempt"])
    name = shard_name(split, shard)
    doc_ids = embeddings.read_table(name, ["doc_id"]).column("doc_id")
    found = [files.found(group) for group in range(item["num_groups"])]
    table = read_bucket(out, found, shard, found_schema(k))
    ids_MK = from_column(table.column("ids"), ID, k)
    flat = {name: from_column(table.column(name), np.float32, k) for name in DESCRIBED}
    flat["same_group"] = from_column(table.column("same_group"), np.bool_, k)
    row_M = table.column("row").to_numpy() & 0xFFFFFFFF
    source_NK = merge_lists(row_M, flat["cosines"], ids_MK, len(doc_ids))
    kept_M = source_NK[source_NK != NO_ROW]
    num_N = (source_NK != NO_ROW).sum(axis=1)
    offsets = np.concatenate([[0], np.cumsum(num_N)]).astype(np.int32)
    kept = [to_column(ids_MK.ravel()[kept_M]), *(pa.array(values.ravel()[kept_M]) for values in flat.values())]
    lists = [pa.ListArray.from_arrays(pa.array(offsets), column) for column in kept]
    cosine_M = kept[1].to_numpy()
    stats = _count_lists(len(doc_ids), cosine_M[offsets[:-1][num_N > 0]], cosine_M)
    stats["attempt"] = item["attempt"]
    out.write_table(name, pa.table([doc_ids, *lists], schema=NEIGHBORS), stats=stats)
    return {}


def merge_lists(
    row_M: NDArray[np.int64], cosine_MK: NDArray[np.float32], ids_MK: NDArray, num_documents: int
) -> NDArray[np.int64]:
    """The nearest of what several lists of each document hold, each neighbour once; of equally near the lower id first.

    Args:
        row_M: the document of each list.
        cosine_MK: falling, -inf after the last of a list; the same for a pair in whichever list it is.
        num_documents: N.

    Returns:
        list * K + place of each document's neighbours, nearest first, -1 after the last: int64[N, K].
    """
    list_M = np.argsort(row_M, kind="stable")
    first_N1 = np.searchsorted(row_M[list_M], np.arange(num_documents + 1))
    source_NK = np.full((num_documents, cosine_MK.shape[1]), NO_ROW, np.int64)
    _merge_lists(first_N1, list_M, cosine_MK.ravel(), id_numbers(ids_MK.ravel()), source_NK)
    return source_NK


@numba.njit(cache=True, nogil=True)
def _merge_lists(first_N1, list_M, cosine_I, id_I2, source_NK):  # type: ignore[no-untyped-def]  # compiled
    """Fill `source_NK` with places in `cosine_I` and `id_I2`, which hold K neighbours of each list."""
    k = source_NK.shape[1]
    for n in range(len(first_N1) - 1):
        source_K, found = source_NK[n], 0
        for m in list_M[first_N1[n] : first_N1[n + 1]]:
            for i in range(m * k, (m + 1) * k):
                if cosine_I[i] == -np.inf:
                    break
                place = found
                while place > 0 and _is_nearer(cosine_I, id_I2, i, source_K[place - 1]):
                    place -= 1
                if place == k:
                    break
                if place > 0 and not _is_nearer(cosine_I, id_I2, source_K[place - 1], i):
                    continue  # it is there already
                for other in range(min(found, k - 1), place, -1):
                    source_K[other] = source_K[other - 1]
                source_K[place] = i
                found = min(found + 1, k)


@numba.njit(cache=True, nogil=True)
def _is_nearer(cosine_I, id_I2, i, other):  # type: ignore[no-untyped-def]  # compiled
    if cosine_I[i] != cosine_I[other]:
        return cosine_I[i] > cosine_I[other]
    if id_I2[i, 0] != id_I2[other, 0]:
        return id_I2[i, 0] < id_I2[other, 0]
    return id_I2[i, 1] < id_I2[other, 1]


def _count_lists(num_documents: int, nearest_cosine: NDArray[np.float32], cosines: NDArray[np.float32]) -> Stats:
    return {
        "documents": num_documents,
        "documents_with_neighbors": len(nearest_cosine),
        "neighbors": len(cosines),
        "nearest_cosine_sum": float(nearest_cosine.sum(dtype=np.float64)),
        "histogram_nearest": cosine_histogram(nearest_cosine),
        "histogram_all": cosine_histogram(cosines),
    }
