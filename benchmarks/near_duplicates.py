"""Recall and precision of the near-duplicate filter of `pair` on labelled pairs, beside its first two limits alone.

    python benchmarks/near_duplicates.py [--quick] [--corpus FILE …]

Three kinds of text are bundled or invented: Wikipedia paragraphs, parts of Wikipedia articles ten paragraphs long, and
stories of a news wire. `--corpus` takes JSON lines with `text`, and `title` where several are about one subject. How
pairs and labels are made is told in `labelled_pairs.py`; content words are found as `embed` finds them.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import random
from collections import defaultdict
from pathlib import Path

import numpy as np
from harness import emit
from labelled_pairs import Document, Labelled, label_pairs, sentences
from numpy.typing import NDArray
from wire_stories import FORMS, story

from sbp_ray.config import EmbedConfig, PairConfig
from sbp_ray.pairing.candidates import judge_texts
from sbp_ray.text.content import common_words, content_words, distinct_words
from sbp_ray.text.minhash import document_signature, estimate_containment, estimate_jaccard, signature

# N = pairs

BUNDLED = Path(__file__).parents[1] / "data" / "squad48" / "docs.jsonl.gz"
ARTICLE_PARAGRAPHS = 10
MIN_WORDS = 60
TWO_LIMITS = PairConfig(max_content_overlap=1.0)
Subjects = dict[str, list[Document]]


def main() -> None:
    """See the file's docstring."""
    parser = argparse.ArgumentParser(description="Prints two lines of JSON for each kind of text.")
    parser.add_argument("--quick", action="store_true", help="fewer pairs")
    parser.add_argument("--corpus", type=Path, nargs="*", default=[], help="measured instead of the bundled text")
    parser.add_argument("--documents", type=int, default=80, help="that are edited, of each kind")
    parser.add_argument("--most", type=int, default=4000, help="documents of a corpus that are read")
    parser.add_argument("--table", action="store_true", help="the share that is dropped of each edit")
    arguments = parser.parse_args()
    number = 15 if arguments.quick else arguments.documents
    rng = random.Random(0)  # noqa: S311
    kinds = {path.parent.name: read_corpus(path, arguments.most) for path in arguments.corpus} or bundled(rng)
    for kind, subjects in kinds.items():
        measure(kind, subjects, label_pairs(subjects, number, rng), with_table=arguments.table)


def bundled(rng: random.Random) -> dict[str, Subjects]:
    """The three kinds of text that need no file."""
    articles = read_corpus(BUNDLED, most=10_000)
    long: Subjects = defaultdict(list)
    for title, paragraphs in articles.items():
        for start in range(0, len(paragraphs), ARTICLE_PARAGRAPHS):
            long[title].append([" ".join(each) for each in paragraphs[start : start + ARTICLE_PARAGRAPHS]])
    wire = {form: [story(rng, form) for _ in range(400)] for form in FORMS}
    return {"paragraphs": articles, "articles": dict(long), "wire": wire}


def read_corpus(path: Path, most: int) -> Subjects:
    """Documents of so many words and three parts at least, by subject."""
    subjects: Subjects = defaultdict(list)
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for number, row in enumerate(itertools.islice(map(json.loads, lines), most)):
            parts = [part for part in row["text"].split("\n") if part.strip()]
            parts = parts if len(parts) > 3 else sentences(row["text"])
            if len(parts) >= 3 and len(row["text"].split()) >= MIN_WORDS:
                is_part_of_more = "para" in row
                subjects[row["title"] if is_part_of_more else str(number)].append(parts)
    return dict(subjects)


def measure(kind: str, subjects: Subjects, pairs: list[Labelled], *, with_table: bool) -> None:
    """Judge the pairs by what `embed` and `neighbors` would say of their texts."""
    texts = ["\n".join(document) for documents in subjects.values() for document in documents]
    common = common_words(map(distinct_words, texts), len(texts))
    measures = measures_of([pair.first for pair in pairs], [pair.second for pair in pairs], common)
    is_same_N = np.array([pair.is_same for pair in pairs])
    dropped = {cfg: judge_texts(*measures, cfg) > 0 for cfg in (PairConfig(), TWO_LIMITS)}
    for metric in ("recall", "precision"):
        ours, two = (_share(is_same_N, is_dropped_N, metric) for is_dropped_N in dropped.values())
        emit("near_duplicates", kind, metric, "share", ours, "two limits", two, higher_is_better=True)
    if with_table:
        for edit in dict.fromkeys(pair.edit for pair in pairs):
            chosen_N = np.array([pair.edit == edit for pair in pairs])
            print(
                f"{kind:12} {edit:14}", *(f"{is_dropped_N[chosen_N].mean():6.1%}" for is_dropped_N in dropped.values())
            )


def _share(is_same_N: NDArray[np.bool_], is_dropped_N: NDArray[np.bool_], metric: str) -> float:
    of_N = is_same_N if metric == "recall" else is_dropped_N
    return float((is_same_N & is_dropped_N).sum() / of_N.sum())


def measures_of(first: list[str], second: list[str], common: NDArray[np.uint64]) -> list[NDArray[np.float32]]:
    """Jaccard index, containment and overlap of content words of each pair: float32[N]."""
    runs, words = [], []
    for texts in (first, second):
        runs.append([document_signature(text, EmbedConfig().shingle_tokens) for text in texts])
        content = [content_words(text, common) for text in texts]
        words.append([(signature(each), each.size) for each in content])
    jaccard_N, containment_N = _compare(*runs)
    return [jaccard_N, containment_N, _compare(*words)[1]]


def _compare(
    first: list[tuple[NDArray[np.uint8], int]], second: list[tuple[NDArray[np.uint8], int]]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    (a_NH, num_a_N), (b_NH, num_b_N) = (map(np.array, zip(*signed, strict=True)) for signed in (first, second))
    jaccard_N = estimate_jaccard(a_NH, b_NH)
    return jaccard_N, estimate_containment(jaccard_N, num_a_N, num_b_N)


if __name__ == "__main__":
    main()
