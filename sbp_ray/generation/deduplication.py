"""Copies of corpus documents and of earlier samples, found when all shards are merged.

    bands       worker of a shard of the corpus, or of a merged shard: each document's signature into the buckets of its
                bands
    copies      worker of a bucket: its documents that agree in a band are compared; what copies another document goes
                into the bucket of its shard

A synthetic document is dropped where a corpus document is alike, or an earlier synthetic one: of an earlier shard, or
of a lower number, whatever became of that one. This follows from the documents alone, neither from which shard was
finished first nor from when a job died. Each d1 is judged against the other corpus documents, for comparison.

Every document is read once and written once for each of its bands, whatever the number of shards.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sbp_ray.artifacts import Artifact
from sbp_ray.buckets import bucket_writer, read_bucket
from sbp_ray.config import SynthesizeConfig
from sbp_ray.doc_ids import from_column, to_column
from sbp_ray.generation.d1 import choose_rows, read_shard
from sbp_ray.generation.merging import finished_shards, signatures_name
from sbp_ray.schema import SIGNATURE_BYTES
from sbp_ray.shards import Stats, list_shards, shard_name
from sbp_ray.steps import SCRATCH, Step
from sbp_ray.text.copies import band_keys, band_width, candidate_pairs
from sbp_ray.text.hashing import mixed
from sbp_ray.text.minhash import estimate_jaccard

# M = rows of a bucket, H = 256 hashes, R = documents, B = bands, P = pairs

BAND = pa.schema(
    [
        ("band", pa.uint8()),
        ("kind", pa.uint8()),
        ("place", pa.int64()),  # shard << 32 | row in the shard
        ("signature", pa.binary(SIGNATURE_BYTES)),
    ]
)
COPY = pa.schema([("reason", pa.string()), ("row", pa.int64())])
_PLAN = f"{SCRATCH}/plan.json"
_CORPUS, _D1, _SYNTHETIC = 0, 1, 2  # kinds: corpus documents come before all synthetic ones
COPY_OF_CORPUS, COPY_OF_SYNTHETIC, _REAL_COPY = "copy_of_corpus", "copy_of_synthetic", "d1"
_ROW_BYTES = SIGNATURE_BYTES + 10
_BUCKET_BYTES = 256 << 20  # of which a worker holds about three times as much
_BLOCK_DOCUMENTS = 8192  # whose bands are written at a time: 70 MB with 32 bands


def copy_steps(
    cfg: SynthesizeConfig, corpus_shards: int, *, embeddings: Artifact, out: Artifact
) -> tuple[list[Step], list[str]]:
    """The steps that find all copies, and the files in which `read_copies` finds them afterwards.

    Raises:
        SbpError: a shard of the embeddings has gone.
    """
    if not out.exists(_PLAN):
        out.write_json(_PLAN, _plan(cfg, corpus_shards, embeddings, out))
    plan = out.read_json(_PLAN)
    bands, num_buckets = plan["bands"], plan["buckets"]
    files = [band_file(**item) for item in bands]
    buckets = [{"bucket": bucket} for bucket in range(num_buckets)]
    write = partial, (_write_bands, cfg, embeddings, out, num_buckets), bands
    compare = partial, (_compare_bucket, cfg.max_jaccard, files, out), buckets
    steps = [
        Step("synthesize-bands", *write, lambda item: band_file(**item)),
        Step("synthesize-compare", *compare, lambda item: copy_file(item["bucket"])),
    ]
    return steps, [copy_file(bucket) for bucket in range(num_buckets)]


def read_copies(out: Artifact, files: list[str], shard: int) -> tuple[dict[str, NDArray[np.int64]], int]:
    """Rows of a merged shard by what they copy, a corpus document first; and how many d1 copy a corpus document."""
    found = read_bucket(out, files, shard, COPY)
    reasons, rows = found["reason"].to_numpy(zero_copy_only=False), found["row"].to_numpy()
    by_reason = {reason: rows[reasons == reason] for reason in (COPY_OF_CORPUS, COPY_OF_SYNTHETIC)}
    return by_reason, len(np.unique(rows[reasons == _REAL_COPY]))


def _plan(cfg: SynthesizeConfig, corpus_shards: int, embeddings: Artifact, out: Artifact) -> dict[str, Any]:
    """The items of the first step, and how many buckets there are: the same however often the job dies."""
    quotas = {shard: out.read_stats(name)["d1"] for shard, name in finished_shards(out).items()}
    corpus = [{"shard": shard, "quota": quotas.get(shard, 0)} for shard in range(corpus_shards)]
    documents = sum(map(embeddings.num_rows, list_shards(embeddings, "train")))
    documents += sum(out.num_rows(signatures_name(shard)) for shard in quotas)
    num_bands = SIGNATURE_BYTES // band_width(cfg.max_jaccard)
    return {
        "bands": [*corpus, *({"shard": shard, "quota": None} for shard in sorted(quotas))],
        "buckets": 1 + documents * num_bands * _ROW_BYTES // _BUCKET_BYTES,
    }


def band_file(shard: int, quota: int | None) -> str:
    """Where the bands of a shard's documents lie, in buckets of keys; a merged shard has no quota of d1."""
    return f"{SCRATCH}/bands-{'corpus' if quota is not None else 'synthetic'}/part-{shard:05d}.arrow"


def copy_file(bucket: int) -> str:
    """Where the copies lie that a bucket holds, in a bucket for each shard."""
    return f"{SCRATCH}/copies/part-{bucket:05d}.arrow"


def _write_bands(
    cfg: SynthesizeConfig, embeddings: Artifact, out: Artifact, num_buckets: int, item: dict[str, Any]
) -> Stats:
    """Put the documents of one shard into the buckets of their bands."""
    width = band_width(cfg.max_jaccard)
    shard, quota = item["shard"], item["quota"]
    if quota is not None:
        table = read_shard(embeddings, shard_name("train", shard), ["doc_id", "signature"])
        kind_R = np.full(len(table), _CORPUS, np.uint8)
        kind_R[choose_rows(table["doc_id"], quota, cfg.seed)] = _D1
    else:
        table = read_shard(out, signatures_name(shard), ["signature"])
        kind_R = np.full(len(table), _SYNTHETIC, np.uint8)
    signature_RH = from_column(table.column("signature"), np.uint8, SIGNATURE_BYTES)
    with bucket_writer(out, band_file(**item), BAND, compression=None) as writer:
        for start in range(0, len(table), _BLOCK_DOCUMENTS):
            rows = slice(start, start + _BLOCK_DOCUMENTS)
            place_R = (shard << 32) + np.arange(start, start + len(kind_R[rows]))
            writer.write(*_bands(kind_R[rows], place_R, signature_RH[rows], width, num_buckets))
        writer.finish({})
    return {}


def _bands(
    kind_R: NDArray[np.uint8], place_R: NDArray[np.int64], signature_RH: NDArray[np.uint8], width: int, num_buckets: int
) -> tuple[pa.Table, NDArray[np.int64]]:
    """Rows of `BAND`, and the bucket of each: that of the band's number and bytes."""
    key_RB = band_keys(signature_RH, width).astype(np.uint64)
    num_bands = key_RB.shape[1]
    band_RB = np.broadcast_to(np.arange(num_bands, dtype=np.uint8), key_RB.shape)
    bucket_RB = mixed(mixed(key_RB + band_RB)) % np.uint64(num_buckets)
    columns = [pa.array(band_RB.ravel()), *(pa.array(np.repeat(part, num_bands)) for part in (kind_R, place_R))]
    table = pa.table([*columns, to_column(np.repeat(signature_RH, num_bands, axis=0))], schema=BAND)
    return table, bucket_RB.ravel().astype(np.int64)


def _compare_bucket(max_jaccard: float, files: list[str], out: Artifact, item: dict[str, Any]) -> Stats:
    """Find the copies among the documents of one bucket."""
    table = read_bucket(out, files, item["bucket"], BAND)
    with bucket_writer(out, copy_file(item["bucket"]), COPY) as writer:
        for reason, place_M in _copies(table, max_jaccard).items():
            place_M = np.unique(place_M)
            rows = [pa.array([reason] * len(place_M), pa.string()), pa.array(place_M & 0xFFFFFFFF)]
            writer.write(pa.table(rows, schema=COPY), place_M >> 32)
        writer.finish({})
    return {}


def _copies(table: pa.Table, max_jaccard: float) -> dict[str, NDArray[np.int64]]:
    """By reason, the places of the documents that copy another one."""
    band_M, kind_M, place_M = (table[name].to_numpy() for name in ("band", "kind", "place"))
    signature_MH = from_column(table.column("signature"), np.uint8, SIGNATURE_BYTES)
    key_M = band_keys(signature_MH, band_width(max_jaccard))[np.arange(len(band_M)), band_M]
    order_M = np.lexsort((place_M, kind_M == _SYNTHETIC, key_M, band_M))
    kind_M, place_M = kind_M[order_M], place_M[order_M]
    is_synthetic_M = kind_M == _SYNTHETIC
    copies = {reason: np.zeros(len(kind_M), bool) for reason in (COPY_OF_CORPUS, COPY_OF_SYNTHETIC)}
    for later_P, earlier_P in candidate_pairs(band_M[order_M], key_M[order_M]):
        is_judged_P = is_synthetic_M[later_P] | (kind_M[later_P] == _D1) | (kind_M[earlier_P] == _D1)
        of_synthetic_P = is_synthetic_M[earlier_P]
        is_known_P = np.where(of_synthetic_P, copies[COPY_OF_SYNTHETIC][later_P], copies[COPY_OF_CORPUS][later_P])
        is_open_P = is_judged_P & ~(is_known_P & is_synthetic_M[later_P])
        a_P, b_P = later_P[is_open_P], earlier_P[is_open_P]
        is_alike_P = estimate_jaccard(signature_MH[order_M[a_P]], signature_MH[order_M[b_P]]) > max_jaccard
        a_P, b_P = a_P[is_alike_P], b_P[is_alike_P]
        copies[COPY_OF_SYNTHETIC][a_P[is_synthetic_M[b_P]]] = True
        copies[COPY_OF_CORPUS][a_P[~is_synthetic_M[b_P]]] = True
        copies[COPY_OF_CORPUS][b_P[~is_synthetic_M[a_P]]] = True  # two corpus documents copy each other
    is_real_copy_M = copies[COPY_OF_CORPUS] & (kind_M == _D1)
    copies[COPY_OF_CORPUS] &= is_synthetic_M
    return {reason: place_M[is_copy_M] for reason, is_copy_M in {**copies, _REAL_COPY: is_real_copy_M}.items()}
