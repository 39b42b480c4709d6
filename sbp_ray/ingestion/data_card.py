"""What a corpus is: counted where its shards are written, told when they all are."""

from __future__ import annotations

import functools
import io
import json
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sbp_ray.artifacts import Artifact
from sbp_ray.ingestion.choosing import EXAMPLES
from sbp_ray.ingestion.parsing import QUARANTINE
from sbp_ray.shards import Stats

_LETTERS = 50  # of a document, by which its script is told
_LIMITS = 4 ** np.arange(2, 31)  # of lengths that are counted together


def describe_texts(texts: pa.ChunkedArray) -> Stats:
    """Characters, documents by length, and documents by the script of most of their first letters."""
    lengths_N = pc.utf8_length(texts).to_numpy()
    limits_N = _LIMITS[np.searchsorted(_LIMITS, lengths_N)]
    heads = pc.utf8_slice_codeunits(texts, 0, 4 * _LETTERS).to_pylist()
    return {
        "characters": int(lengths_N.sum()),
        "lengths": {str(limit): count for limit, count in sorted(Counter(limits_N.tolist()).items())},
        "scripts": dict(Counter(map(_script_of, heads))),
    }


def _script_of(text: str) -> str:
    scripts = Counter(_script(char) for char in text if char.isalpha())
    return scripts.most_common(1)[0][0] if scripts else "none"


@functools.lru_cache(1 << 16)
def _script(char: str) -> str:
    """The first word of a letter's name, such as LATIN, THAI or CJK."""
    return unicodedata.name(char, "unknown").partition(" ")[0].lower()


def examples_of_bad_rows(out: Artifact) -> dict[str, list[str]]:
    """Places of the first rows that were put aside, by reason. A file may have many, and is read line by line."""
    places: defaultdict[str, list[str]] = defaultdict(list)
    for name in out.files(QUARANTINE):
        with out.fs.open_input_file(out.path(name)) as file:
            for line in io.BufferedReader(cast(io.RawIOBase, file)):
                entry = json.loads(line)
                if len(places[entry["reason"]]) < EXAMPLES:
                    part = f"{entry['from_byte']}+" if "from_byte" in entry else ""
                    places[entry["reason"]].append(f"{entry['file']}:{part}{entry['line']}")
    return dict(places)


def first_examples(parts: Iterable[Mapping[str, list[str]]]) -> dict[str, list[str]]:
    """The first few of each reason."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for reason, examples in (item for part in parts for item in part.items() if item[1]):
        found[reason] += examples[: EXAMPLES - len(found[reason])]
    return dict(found)


def script_shares(split: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The scripts of a split's documents, the most frequent first, and the share of each."""
    scripts = sorted(split["scripts"].items(), key=lambda item: -item[1])
    return [(name, count / split["documents"]) for name, count in scripts if count]


def length_shares(split: Mapping[str, Any]) -> list[tuple[int, float]]:
    """Limits of the documents' lengths in characters, and the share of those above the limit before."""
    lengths = sorted((int(limit), count) for limit, count in split["lengths"].items())
    return [(limit, count / split["documents"]) for limit, count in lengths if count]


def tabulate_corpus(stats: dict[str, Any], splits: Sequence[str]) -> Iterator[str]:
    """The lines of a table of what the stage has made, so that a team sees what it is about to spend GPUs on."""
    yield f"{'':12} {'documents':>12} {'groups':>10} {'characters':>15} {'tokens':>15}"
    for split in splits:
        part = stats[split]
        counts = part["documents"], part["groups"], part["characters"], part["tokens"]
        yield f"{split:12} {counts[0]:12,} {counts[1]:10,} {counts[2]:15,} {counts[3]:15,}"
    yield "scripts: " + ", ".join(f"{name} {share:.1%}" for name, share in script_shares(stats["train"])[:5])
    yield "characters: " + ", ".join(f"up to {limit:,} {share:.1%}" for limit, share in length_shares(stats["train"]))
    for reason, count in sorted(stats["drops"].items(), key=lambda item: -item[1]):
        examples = ", ".join(stats["examples"].get(reason, ()))
        yield f"dropped: {count:,} {reason}" + (f" ({examples})" if examples else "")
