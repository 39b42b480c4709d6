"""What `pair.min_content_overlap` keeps out, on wire stories and on passages of prose, with the bundled embedder.

    python benchmarks/form_only.py [--quick]

Stories of three forms stand among Wikipedia paragraphs of 48 articles, a fortieth of all documents each. Of the pairs
above a cosine it counts those of one form about two companies (wire) and those of one article (prose), and the share of
each that is dropped as alike in form only.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random

import numpy as np
from harness import hardware
from near_duplicates import BUNDLED, measures_of
from wire_stories import FORMS, story

from sbp_ray.config import EmbedConfig, ForwardResources, PairConfig
from sbp_ray.embedder import load_embedder
from sbp_ray.pairing.candidates import REASONS, judge_texts
from sbp_ray.text.content import common_words, distinct_words

MIN_COSINE = 0.5
MIN_CONTENT_OVERLAP = 0.02


def main() -> None:
    """See the file's docstring."""
    parser = argparse.ArgumentParser(description="Prints one line of JSON for each kind of pairs.")
    parser.add_argument("--quick", action="store_true", help="fewer documents")
    parser.add_argument("--documents", type=int, default=400)
    arguments = parser.parse_args()
    number = 80 if arguments.quick else arguments.documents
    rng = random.Random(0)  # noqa: S311
    with gzip.open(BUNDLED, "rt", encoding="utf-8") as lines:
        paragraphs = [(row["title"], row["text"]) for row in map(json.loads, lines)]
    wire = [(form, "\n".join(story(rng, form))) for form in FORMS for _ in range(number // 8)]
    texts = [*rng.sample(paragraphs, number), *wire]
    label_N = np.array([label for label, _ in texts])
    words = [text for _, text in texts]
    common = common_words([distinct_words(text) for _, text in [*paragraphs, *wire]], len(paragraphs) + len(wire))
    embedder = load_embedder(EmbedConfig(dtype="float32", resources=ForwardResources(num_threads=1)))
    vectors_ND, _ = embedder.start(embedder.tokenize(words)).result()
    first, second = np.triu_indices(len(texts), k=1)
    chosen = np.flatnonzero((vectors_ND @ vectors_ND.T)[first, second] >= MIN_COSINE)
    first, second = first[chosen], second[chosen]
    measures = measures_of([words[i] for i in first], [words[i] for i in second], common)
    reason_N = judge_texts(*measures, PairConfig(min_content_overlap=MIN_CONTENT_OVERLAP))
    is_form_N = reason_N == 1 + REASONS.index("form_only")
    is_same_N, is_wire_N = label_N[first] == label_N[second], np.isin(label_N[first], [*FORMS])
    kinds = {
        "one form, two companies": is_same_N & is_wire_N,
        "one article": is_same_N & ~is_wire_N,
        "two articles": ~is_same_N & ~is_wire_N,
    }
    for kind, is_kind_N in kinds.items():
        line = {"benchmark": "form_only", "case": kind, "min_cosine": MIN_COSINE, "pairs": int(is_kind_N.sum())}
        share = round(float(is_form_N[is_kind_N].mean()), 4) if is_kind_N.any() else None
        print(json.dumps({**line, "share_form_only": share, "hardware": hardware()}), flush=True)


if __name__ == "__main__":
    main()
