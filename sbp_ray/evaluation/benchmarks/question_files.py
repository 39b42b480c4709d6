"""The users' files of benchmarks: found, read and checked before any heavy work, and what is asked of them drawn."""

from __future__ import annotations

import io
import json
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

from sbp_ray.errors import SbpError, one_line
from sbp_ray.evaluation.benchmarks.builtin import FORMS, BuiltIn, Row
from sbp_ray.evaluation.text_quality.sampling import rank
from sbp_ray.sources import open_bytes, open_file_system

_JSONL = (".jsonl", ".jsonl.gz", ".jsonl.zst")
_HEADING = re.compile(r"^ = [^=].*[^=] = $")  # of a WikiText article; those of its parts have more signs


def read_rows(path: str, like: str, built_in: BuiltIn, where: str) -> list[Row]:
    """Every row of the file, each with a `key` that no other has.

    Args:
        like: the name of `built_in`, for what it alone wants of a row.
        where: the setting, for errors.

    Raises:
        SbpError: the file is missing, empty, or holds a row of another form; names the line, and what is there.
    """
    is_text = built_in.form == "text" and not path.endswith(_JSONL)
    rows = list(_documents(path, where) if is_text else _parsed(path, like, built_in, where))
    if not rows:
        raise SbpError(f"{where}={path}: is empty: each line must be {FORMS[built_in.form]}")
    seen: Counter[str] = Counter()
    for row in rows:
        seen[row["key"]] += 1
        if seen[row["key"]] > 1:
            row["key"] += f" ({seen[row['key']]})"
    return rows


def draw(rows: Sequence[Row], limit: int | None, seed: int) -> tuple[list[Row], list[Row]]:
    """Up to `limit` rows drawn by their keys, and those that are left; both in the file's order."""
    if limit is None or len(rows) <= limit:
        return list(rows), []
    drawn = {row["key"] for row in sorted(rows, key=lambda row: rank(row["key"], seed))[:limit]}
    return [row for row in rows if row["key"] in drawn], [row for row in rows if row["key"] not in drawn]


# Lines


def _lines(path: str, where: str) -> Iterator[tuple[int, bytes]]:
    fs, inner = open_file_system(path)
    if not fs.get_file_info(inner).is_file:
        raise SbpError(f"{where}={path}: there is no such file: mend the path")
    try:
        with open_bytes(path) as raw:
            stream = io.BufferedReader(cast(io.RawIOBase, raw), 1 << 20)  # Arrow's stream has what it needs
            yield from enumerate(stream, start=1)
    except OSError as error:
        raise SbpError(f"{where}={path}: cannot be read: {one_line(error)}: check the file") from None


def _documents(path: str, where: str) -> Iterator[Row]:
    """A plain text: WikiText's articles, each from its heading on; without headings, the whole is one document."""
    parts: list[list[str]] = [[]]
    for number, line in _lines(path, where):
        try:
            text = line.decode().rstrip("\n")
        except UnicodeDecodeError:
            raise SbpError(f"{where}={path}:{number}: is not UTF-8: convert the file") from None
        if _HEADING.match(text) and parts[-1]:
            parts.append([])
        parts[-1].append(text)
    name = posixpath.basename(path)
    for number, part in enumerate(parts, start=1):
        if text := "\n".join(part).strip():
            yield {"key": f"{name}/{number}", "text": text}


def _parsed(path: str, like: str, built_in: BuiltIn, where: str) -> Iterator[Row]:
    form = FORMS[built_in.form]
    for number, line in _lines(path, where):
        if not line.strip():
            continue
        place = f"{where}={path}:{number}"
        try:
            row = json.loads(line)
        except ValueError:  # broken JSON, or not UTF-8
            raise SbpError(f"{place}: is not JSON: each line must be {form}") from None
        if not isinstance(row, dict):
            raise SbpError(f"{place}: is not an object: each line must be {form}")
        if not _CHECKS[built_in.form](row):
            raise SbpError(f"{place}: has {', '.join(row) or 'no columns'}: each line must be {form}")
        if problem := _own_problem(like, row):
            raise SbpError(f"{place}: {problem}")
        yield row | {"key": str(row.get("id", number))}


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _are_texts(value: Any, at_least: int) -> bool:
    return isinstance(value, list) and len(value) >= at_least and all(map(_is_text, value))


def _is_choice(row: Row) -> bool:
    query, choices, gold = row.get("query"), row.get("choices"), row.get("gold")
    optional = all(isinstance(row.get(key, ""), str) for key in ("context", "subject"))
    is_index = type(gold) is int and _are_texts(choices, 2) and 0 <= gold < len(cast(list, choices))
    return _is_text(query) and is_index and optional


_CHECKS: dict[str, Callable[[Row], bool]] = {
    "choices": _is_choice,
    "answers": lambda row: _is_text(row.get("question")) and _are_texts(row.get("answers"), 1),
    "target": lambda row: _is_text(row.get("context")) and _is_text(row.get("target")),
    "text": lambda row: _is_text(row.get("text")),
}


def _own_problem(like: str, row: Row) -> str | None:
    """What a benchmark wants beyond its form."""
    if like == "mmlu" and len(row["choices"]) != 4:
        return f"has {len(row['choices'])} choices: mmlu has four, A to D"
    if like == "winogrande" and not row["query"].partition("_")[2].strip():
        return "query has no blank `_` with text after it: a choice fills the blank, and what follows is scored"
    return None
