"""Rows of artifacts for a person to read: chosen at random, shard by shard, until there are enough."""

from __future__ import annotations

import random
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from sbp_ray.artifacts import Artifact
from sbp_ray.errors import SbpError
from sbp_ray.schema import SPLITS
from sbp_ray.shards import fetch_rows, list_shards

_ANY_COSINE = (-1.0, 1.0)
_AT_ONCE = 50  # rows whose texts are fetched together, while enough of them are looked for


class Choice(NamedTuple):
    """Which rows are shown, and how much of them."""

    number: int = 5
    seed: int = 0
    matching: str | None = None
    """A regular expression that is found in one of the row's texts."""
    cosines: tuple[float, float] = _ANY_COSINE
    """Of pairs; those that were drawn at random have none, and are in no narrower band."""
    num_chars: int = 500
    """Of each text."""


class Shown(NamedTuple):
    """A row as it is shown: what is known of it, and its texts by what they are."""

    told: str
    texts: dict[str, str]


def show_rows(what: str, split: str, choice: Choice, artifacts: Mapping[str, Artifact]) -> Iterator[str]:
    """The lines to print.

    Raises:
        SbpError: the artifact is not there yet, or no row is as the choice wants it.
    """
    if split not in SPLITS:
        raise SbpError(f"--split {split}: choose one of {', '.join(SPLITS)}")
    try:
        pattern = re.compile(choice.matching or "")
    except re.error as error:
        raise SbpError(f"--matching {choice.matching}: is no regular expression: {error}") from None
    readers: dict[str, Callable[..., Iterator[Shown]]] = {
        "documents": _documents,
        "pairs": _pairs,
        "synthetic": _synthetic,
    }
    made = artifacts[{"documents": "corpus"}.get(what, what)]
    if made.manifest() is None:
        raise SbpError(f"{made.url} is not there yet: run the job that makes it first")
    num_shown = 0
    for row in readers[what](artifacts, split, choice):
        if any(pattern.search(text) for text in row.texts.values()):
            yield from _lines(row, choice.num_chars)
            num_shown += 1
            if num_shown == choice.number:
                return
    if not num_shown:
        raise SbpError(f"no row of {what} ({split}) is as asked for: widen what is asked")


def _lines(row: Shown, num_chars: int) -> Iterator[str]:
    yield f"── {row.told}"
    for name, text in row.texts.items():
        cut = text if len(text) <= num_chars else f"{text[:num_chars]} … ({len(text):,} characters)"
        yield textwrap.indent(cut, f"{name:>9} │ ", lambda _: True)
    yield ""


def _shuffled(
    artifact: Artifact, names: list[str], columns: list[str], choice: Choice
) -> Iterator[list[dict[str, Any]]]:
    """Rows of the shards, some at a time; shards and rows in an order that the seed draws."""
    draw = random.Random(choice.seed)  # noqa: S311
    for name in draw.sample(names, len(names)):
        table = artifact.read_table(name, columns)
        order = draw.sample(range(len(table)), len(table))
        for start in range(0, len(order), _AT_ONCE):
            yield table.take(order[start : start + _AT_ONCE]).to_pylist()


def _documents(artifacts: Mapping[str, Artifact], split: Any, choice: Choice) -> Iterator[Shown]:
    corpus = artifacts["corpus"]
    for rows in _shuffled(corpus, list_shards(corpus, split), ["doc_id", "group", "text"], choice):
        for row in rows:
            yield Shown(f"{row['doc_id'].hex()} | group {row['group']}", {"text": row["text"]})


def _pairs(artifacts: Mapping[str, Artifact], split: Any, choice: Choice) -> Iterator[Shown]:
    pairs = artifacts["pairs"]
    columns = ["d1_id", "d2_id", "cosine", "jaccard"]
    for rows in _shuffled(pairs, list_shards(pairs, split), columns, choice):
        wanted = [row for row in rows if _is_within(row["cosine"], choice.cosines)]
        texts = _texts(artifacts["corpus"], split, [row[side] for row in wanted for side in ("d1_id", "d2_id")])
        for row in wanted:
            alike = "drawn at random"
            if row["cosine"] is not None:
                alike = f"cosine {row['cosine']:.3f} | Jaccard {row['jaccard']:.3f}"
            told = f"{alike} | {row['d1_id'].hex()} {row['d2_id'].hex()}"
            yield Shown(told, {"d1": texts[row["d1_id"]], "d2": texts[row["d2_id"]]})


def _is_within(cosine: float | None, band: tuple[float, float]) -> bool:
    return band == _ANY_COSINE if cosine is None else band[0] <= cosine <= band[1]


def _synthetic(artifacts: Mapping[str, Artifact], split: Any, choice: Choice) -> Iterator[Shown]:
    synthetic = artifacts["synthetic"]
    columns = ["doc_id", "d1_id", "sample", "finish_reason", "text"]
    for rows in _shuffled(synthetic, synthetic.files(suffix=".parquet"), columns, choice):
        texts = _texts(artifacts["corpus"], "train", [row["d1_id"] for row in rows])
        for row in rows:
            told = f"{row['doc_id'].hex()} | sample {row['sample']} of {row['d1_id'].hex()} | {row['finish_reason']}"
            yield Shown(told, {"d1": texts[row["d1_id"]], "synthetic": row["text"]})


def _texts(corpus: Artifact, split: Any, ids: list[bytes]) -> dict[bytes, str]:
    table = fetch_rows(corpus, split, [*dict.fromkeys(ids)], ["text"])
    return dict(zip(table["doc_id"].to_pylist(), table["text"].to_pylist(), strict=True))
