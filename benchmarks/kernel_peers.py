"""Every kernel that was written by hand, beside the library that it stands for, at three sizes each.

    python benchmarks/kernel_peers.py [--quick] [--only packing]

| kernel | peer |
|---|---|
| exact search of the nearest, by 8 bits and then float32 | FAISS, a flat index in float32 |
| sampling a token for each seed, from logits | vLLM's own sampler on a CPU, a generator a sample |
| packing documents into rows, best fit, longest first | TRL's `pack_dataset` with `bfd` |
| b-bit MinHash of a text, 256 hashes, runs of five words | datasketch's MinHash of the same runs, hashed by xxHash |
| hashes of all runs of 13 words of a text | scikit-learn's HashingVectorizer |

Both sides get what they take in memory, and have run once. Our packing writes its rows to disk, TRL keeps its own in
memory. `make bench NAME=kernel_peers` installs the peers.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import faiss
import numpy as np
import torch
import xxhash
from harness import alternate, emit
from numpy.typing import NDArray
from sklearn.feature_extraction.text import HashingVectorizer

from sbp_ray.artifacts import Artifact
from sbp_ray.doc_ids import ID
from sbp_ray.engine.seeded import sample_tokens, uniform_numbers
from sbp_ray.neighbors.exact_search import ExactSearch
from sbp_ray.neighbors.quantize import Quantizer, encode, new_pool
from sbp_ray.processor import num_cpus
from sbp_ray.text.minhash import NUM_HASHES, document_signature
from sbp_ray.text.shingles import shingle_hashes
from sbp_ray.text.words import word_ids
from sbp_ray.training.packed import TokenLists, write_shard

DIM, NEIGHBOURS, QUERIES = 384, 50, 512
VOCAB_SIZE, SEQ_LEN = 32_768, 4096
SHINGLE_WORDS, RUN_WORDS = 5, 13


class Case(NamedTuple):
    """One size of one kernel."""

    size: str
    ours: Callable[[], object]
    peer_name: str
    peer: Callable[[], object]
    is_same: Callable[[], bool] | None = None
    """Whether both say the same, where they should."""


def exact_search(num_documents: int) -> Case:
    """All queries against all documents, with every core."""
    rng = np.random.default_rng(0)
    vectors_ND = rng.standard_normal((num_documents, DIM), dtype=np.float32)
    vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    ids = np.array([f"{number:016d}" for number in range(num_documents)], ID)
    quantizer = Quantizer(float(np.abs(vectors_ND).max()))
    coarse_ND, pool = quantizer.coarse(encode(vectors_ND)), new_pool(num_cpus())
    faiss.omp_set_num_threads(num_cpus())
    index = faiss.IndexFlatIP(DIM)
    index.add(vectors_ND)

    def ours() -> NDArray[np.bytes_]:
        search = ExactSearch(vectors_ND[:QUERIES], ids[:QUERIES], NEIGHBOURS, quantizer, pool)
        for start in range(0, num_documents, 8192):
            block = slice(start, start + 8192)
            search.show(vectors_ND[block], coarse_ND[block], ids[block])
        return search.result().id_QK

    def peer() -> NDArray[np.bytes_]:
        _, found_QK = index.search(vectors_ND[:QUERIES], NEIGHBOURS + 1)
        return ids[found_QK[:, 1:]]  # without the query itself, which is its nearest

    def is_same() -> bool:
        shared = [len(np.intersect1d(one, other)) for one, other in zip(ours(), peer(), strict=True)]
        return sum(shared) >= 0.9999 * QUERIES * NEIGHBOURS  # equal cosines aside

    return Case(f"{QUERIES} queries of {num_documents:,} x {DIM}", ours, "faiss.IndexFlatIP", peer, is_same)


def seeded_sampling(rows: int) -> Case:
    """A token of each row, one thread, as an engine of one core does."""
    from vllm.v1.sample.ops.topk_topp_sampler import random_sample

    logits = torch.randn(rows, VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
    generators = {row: torch.Generator().manual_seed(row) for row in range(rows)}
    seeds, places = np.arange(rows, dtype=np.uint64), np.zeros(rows, np.uint64)
    warm, all_of_it = torch.ones(rows), torch.ones(rows)

    def ours() -> torch.Tensor:
        return sample_tokens(logits, warm, all_of_it, torch.from_numpy(uniform_numbers(seeds, places)))

    def peer() -> torch.Tensor:
        return random_sample(torch.softmax(logits / warm[:, None], dim=-1), generators)

    return Case(f"{rows} samples, vocabulary of {VOCAB_SIZE:,}", ours, "vLLM's random_sample", peer)


def packing(num_documents: int) -> Case:
    """Documents with the lengths of web text, and their tokens; ours also writes the rows to disk."""
    from datasets import Dataset
    from datasets.utils.logging import disable_progress_bar
    from trl.data_utils import pack_dataset

    disable_progress_bar()
    rng = np.random.default_rng(0)
    length_D = np.minimum(rng.lognormal(6.2, 0.9, num_documents).astype(np.int64) + 2, SEQ_LEN)
    token_T = rng.integers(VOCAB_SIZE, size=length_D.sum(), dtype=np.int32)
    documents = Dataset.from_dict({"input_ids": np.split(token_T, np.cumsum(length_D)[:-1])})
    lists = TokenLists(documents.data.column("input_ids"))

    def ours() -> int:
        with tempfile.TemporaryDirectory() as folder:
            stats = write_shard(
                Artifact("base_lm", folder),
                "rows/real/part-00000.parquet",
                length_D=length_D,
                first_supervised_D=np.ones(num_documents, np.int64),
                tokens_of=lists.of,
                seq_len=SEQ_LEN,
                vocab_size=VOCAB_SIZE,
            )
        return int(stats["rows"])

    def peer() -> int:
        return len(pack_dataset(documents, SEQ_LEN, "bfd", {"keep_in_memory": True, "batch_size": num_documents}))

    def is_same() -> bool:
        return abs(ours() - peer()) <= 1

    return Case(f"{num_documents:,} documents into rows of {SEQ_LEN:,}", ours, "trl.pack_dataset(bfd)", peer, is_same)


def text_of(num_words: int) -> str:
    """Words as frequent as in English, more or less."""
    numbers = np.random.default_rng(0).zipf(1.3, num_words) % 50_000
    return " ".join(f"w{number}" for number in numbers)


def minhash(num_words: int) -> Case:
    """From the text to the signature."""
    from datasketch import MinHash

    text = text_of(num_words)

    def peer() -> object:
        words = text.split()
        made = MinHash(NUM_HASHES, hashfunc=xxhash.xxh32_intdigest)
        made.update_batch(
            [" ".join(words[i : i + SHINGLE_WORDS]).encode() for i in range(len(words) - SHINGLE_WORDS + 1)]
        )
        return made

    return Case(f"{num_words:,} words", lambda: document_signature(text, SHINGLE_WORDS), "datasketch.MinHash", peer)


def ngrams(num_words: int) -> Case:
    """From the text to the hashes."""
    text = text_of(num_words)
    vectorizer = HashingVectorizer(
        n_features=2**31 - 1, ngram_range=(RUN_WORDS, RUN_WORDS), norm=None, alternate_sign=False, lowercase=True
    )

    def ours() -> int:
        return len(shingle_hashes(word_ids(text), RUN_WORDS))

    def peer() -> int:
        return int(vectorizer.transform([text]).nnz)

    return Case(f"{num_words:,} words", ours, "sklearn.HashingVectorizer", peer, lambda: ours() == peer())


KERNELS: dict[str, list[Callable[[], Case]]] = {
    "exact search": [partial(exact_search, number) for number in (5_000, 20_000, 100_000)],
    "seeded sampling": [partial(seeded_sampling, rows) for rows in (16, 64, 256)],
    "packing": [partial(packing, number) for number in (1_000, 10_000, 60_000)],
    "minhash": [partial(minhash, number) for number in (100, 1_000, 10_000)],
    "n-grams": [partial(ngrams, number) for number in (100, 1_000, 10_000)],
}


def main() -> None:
    """See the file's docstring."""
    parser = argparse.ArgumentParser(description="Prints one line of JSON for each kernel and size.")
    parser.add_argument("--quick", action="store_true", help="the two smaller sizes, fewer rounds")
    parser.add_argument("--only", choices=KERNELS, help="one kernel")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name, cases in KERNELS.items():
        if arguments.only in (None, name):
            for make in cases[:2] if arguments.quick else cases:
                compare(name, make(), rounds=3 if arguments.quick else 7)


def compare(name: str, case: Case, rounds: int) -> None:
    """Print one line. A kernel that says something else than its peer is no result."""
    assert case.is_same is None or case.is_same(), f"{name} | {case.size}: not what {case.peer_name} says"
    times = alternate({"ours": partial(seconds, case.ours), "peer": partial(seconds, case.peer)}, rounds)
    ours, peer = statistics.median(times["ours"]), statistics.median(times["peer"])
    emit("kernel_peers", f"{name} | {case.size}", "time", "s", ours, case.peer_name, peer, higher_is_better=False)


def seconds(work: Callable[[], object]) -> float:
    """Of one run among as many as a tenth of a second holds."""
    runs, start = 0, time.perf_counter()
    while not runs or time.perf_counter() - start < 0.1:
        work()
        runs += 1
    return (time.perf_counter() - start) / runs


if __name__ == "__main__":
    main()
