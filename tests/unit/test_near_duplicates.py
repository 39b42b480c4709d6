"""The two limits on shingles, on labelled pairs made from the bundled Wikipedia paragraphs.

`benchmarks/near_duplicates.py` measures the whole filter, with content words, on updates of three kinds of text.

Label: two texts are near-duplicates if at least 80 % of the shorter one's words stand in the other one in the same
order: copies, edits of up to 20 % of the words, truncations, a text inside a longer one, other case or white space.
They are not if half of the words are others, if pages share no more than header and footer, or if two paragraphs are
about one subject. `pytest -s` prints the table.
"""

from __future__ import annotations

import gzip
import json
import random
import sys
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from sbp_ray.config import EmbedConfig, PairConfig
from sbp_ray.pairing.candidates import judge_texts
from sbp_ray.text.content import common_words, distinct_words
from sbp_ray.text.minhash import document_signature, estimate_containment, estimate_jaccard

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from labelled_pairs import label_pairs
from near_duplicates import measures_of
from wire_stories import FORMS, story

CORPUS = Path(__file__).parents[2] / "data" / "squad48" / "docs.jsonl.gz"
NUM_DOCUMENTS = 200
MIN_WORDS = 60  # below that, 5 % are hardly more words than 1 %

Case = tuple[str, str]


@cache
def articles() -> dict[str, list[str]]:
    """Paragraphs by the title of their article."""
    found = defaultdict(list)
    with gzip.open(CORPUS, "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            found[row["title"]].append(row["text"])
    return found


def substituted(text: str, share: float, rng: random.Random, *, scattered: bool) -> str:
    """The text with this share of its words replaced by words of the corpus: at random places, or one run of them."""
    words = text.split()
    number = max(1, round(share * len(words)))
    start = rng.randrange(len(words) - number + 1)
    places = rng.sample(range(len(words)), number) if scattered else range(start, start + number)
    for place in places:
        words[place] = rng.choice(rng.choice(rng.choice(list(articles().values()))).split())
    return " ".join(words)


def shortened(text: str, share: float) -> str:
    words = text.split()
    return " ".join(words[: round(share * len(words))])


def other_article(title: str, rng: random.Random) -> str:
    return rng.choice(articles()[rng.choice([other for other in articles() if other != title])])


def pages(title: str, text: str, num_words: int, rng: random.Random) -> Case:
    """Two pages with bodies of two articles between the same header and footer, of so many words together."""
    frame = " ".join([other_article(title, rng) for _ in range(5)]).split()
    header, footer = " ".join(frame[: num_words // 2]), " ".join(frame[-num_words // 2 :])
    return f"{header}\n{text}\n{footer}", f"{header}\n{other_article(title, rng)}\n{footer}"


def same_subject(title: str, text: str, rng: random.Random) -> Case:
    return text, rng.choice([other for other in articles()[title] if other != text])


def reflowed(text: str, rng: random.Random) -> str:
    return "".join(rng.choice(["  ", "\n", " ", "\t", "\u00a0"]) if c == " " else c for c in text)


Make = Callable[[str, str, random.Random], Case]
NEAR: dict[str, Make] = {
    "exact copy": lambda _, text, rng: (text, text),
    "upper case": lambda _, text, rng: (text, text.upper()),
    "lower case": lambda _, text, rng: (text, text.lower()),
    "white space": lambda _, text, rng: (text, reflowed(text, rng)),
    "1 % edited, a run": lambda _, text, rng: (text, substituted(text, 0.01, rng, scattered=False)),
    "1 % edited, scattered": lambda _, text, rng: (text, substituted(text, 0.01, rng, scattered=True)),
    "5 % edited, a run": lambda _, text, rng: (text, substituted(text, 0.05, rng, scattered=False)),
    "5 % edited, scattered": lambda _, text, rng: (text, substituted(text, 0.05, rng, scattered=True)),
    "20 % edited, a run": lambda _, text, rng: (text, substituted(text, 0.2, rng, scattered=False)),
    "20 % edited, scattered": lambda _, text, rng: (text, substituted(text, 0.2, rng, scattered=True)),
    "first 80 %": lambda _, text, rng: (text, shortened(text, 0.8)),
    "first 50 %": lambda _, text, rng: (text, shortened(text, 0.5)),
    "inside a text twice as long": lambda title, text, rng: (text, f"{other_article(title, rng)}\n{text}"),
    "inside one four times as long": lambda title, text, rng: (
        text,
        "\n".join([other_article(title, rng), text, other_article(title, rng), other_article(title, rng)]),
    ),
}
APART: dict[str, Make] = {
    "50 % edited, a run": lambda _, text, rng: (text, substituted(text, 0.5, rng, scattered=False)),
    "50 % edited, scattered": lambda _, text, rng: (text, substituted(text, 0.5, rng, scattered=True)),
    "pages, 80 words in common": lambda title, text, rng: pages(title, text, 80, rng),
    "pages, 150 words in common": lambda title, text, rng: pages(title, text, 150, rng),
    "same article": same_subject,
    "other article": lambda title, text, rng: (text, other_article(title, rng)),
}
MISSED = {"5 % edited, scattered", "20 % edited, a run", "20 % edited, scattered"}
"""What 13-word shingles cannot see, and content words are there for."""


@cache
def cases() -> dict[str, list[Case]]:
    rng = random.Random(0)
    documents = [(t, text) for t, texts in articles().items() for text in texts if len(text.split()) >= MIN_WORDS]
    chosen = rng.sample(documents, NUM_DOCUMENTS)
    return {kind: [make(title, text, rng) for title, text in chosen] for kind, make in (NEAR | APART).items()}


@cache
def dropped(num_words: int) -> dict[str, float]:
    """The share of each kind that the filter drops, with default limits."""
    shares = {}
    for kind, found in cases().items():
        (a_MH, num_a_M), (b_MH, num_b_M) = (
            map(np.array, zip(*(document_signature(text, num_words) for text in texts), strict=True))
            for texts in zip(*found, strict=True)
        )
        jaccard_M = estimate_jaccard(a_MH, b_MH)
        containment_M = estimate_containment(jaccard_M, num_a_M, num_b_M)
        none_M = np.zeros_like(jaccard_M)
        shares[kind] = float((judge_texts(jaccard_M, containment_M, none_M, PairConfig()) > 0).mean())
    return shares


def precision_and_recall(shares: dict[str, float]) -> tuple[float, float]:
    """Over all cases, as many of each kind."""
    caught, wrong = sum(shares[kind] for kind in NEAR), sum(shares[kind] for kind in APART)
    return caught / (caught + wrong), caught / len(NEAR)


def test_the_filter_on_labelled_pairs() -> None:
    widths = (EmbedConfig().shingle_tokens, 7, 5)
    print(f"\nshare dropped as near-duplicates, {NUM_DOCUMENTS} pairs a kind; words in a shingle:", *widths)
    for label, kinds in (("near-duplicates", NEAR), ("not", APART)):
        print(f"  {label}")
        for kind in kinds:
            print(f"    {kind:32}", *(f"{dropped(width)[kind]:8.1%}" for width in widths))
    for name, values in zip(
        ("precision", "recall"), zip(*(precision_and_recall(dropped(w)) for w in widths), strict=True), strict=True
    ):
        print(f"  {name:34}", *(f"{value:8.1%}" for value in values))
    precision, recall = precision_and_recall(dropped(EmbedConfig().shingle_tokens))
    assert precision > 0.995
    assert recall > 0.75


@pytest.mark.parametrize("kind", sorted(NEAR.keys() - MISSED))
def test_near_duplicates_are_dropped(kind: str) -> None:
    assert dropped(13)[kind] >= 0.9


@pytest.mark.parametrize("kind", APART)
def test_what_is_not_one_stays(kind: str) -> None:
    assert dropped(13)[kind] <= 0.01
    assert dropped(5)[kind] <= 0.02


@pytest.mark.parametrize("kind", ["exact copy", "upper case", "lower case", "white space"])
def test_case_and_white_space_hide_no_copy(kind: str) -> None:
    assert dropped(13)[kind] == 1


def test_shorter_shingles_see_more_scattered_edits() -> None:
    found = [dropped(width)["5 % edited, scattered"] for width in (13, 7, 5)]
    assert found == sorted(found)
    assert found[0] < 0.05 and found[-1] > 0.6


def test_updates_are_told_from_stories_of_one_form() -> None:
    """Of invented wire stories, as `benchmarks/near_duplicates.py` measures more of them."""
    rng = random.Random(3)
    stories = {form: [story(rng, form) for _ in range(100)] for form in FORMS}
    pairs = label_pairs(stories, 15, rng)
    common = common_words([distinct_words("\n".join(one)) for some in stories.values() for one in some], 300)
    measures = measures_of([pair.first for pair in pairs], [pair.second for pair in pairs], common)
    is_dropped = judge_texts(*measures, PairConfig()) > 0
    is_same = np.array([pair.is_same for pair in pairs])
    assert is_dropped[is_same].mean() >= 0.9
    assert is_same[is_dropped].mean() >= 0.9
    one_form = np.array([pair.edit in ("same subject", "refilled") for pair in pairs])
    assert not is_dropped[one_form].any()
    assert (judge_texts(*measures, PairConfig(max_content_overlap=1.0)) > 0)[is_same].mean() < 0.5
