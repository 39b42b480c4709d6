"""The users' files of benchmarks: found and read before any heavy work, and what is asked of them chosen."""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from sbp_ray.errors import SbpError, one_line
from sbp_ray.evaluation.benchmarks.catalog import KNOWN, TEXT, Row
from sbp_ray.file_formats import KINDS, split_suffixes
from sbp_ray.object_stores import open_file_system
from sbp_ray.text.hashing import hash64
from sbp_ray.text.lines import iter_json, iter_lines

# A WikiText article begins with such a heading; those of its parts have more signs.
_HEADING = re.compile(r"^ = [^=].*[^=] = $")


def read_rows(path: str, like: str, where: str) -> list[Row]:
    """Every row of the file in the columns that lm-eval's task reads, each with a `key` that no other has.

    Args:
        like: a known benchmark.
        where: the setting, for errors.

    Raises:
        SbpError: the file is missing, empty, or holds no JSON objects of the benchmark's form; names the line.
    """
    fs, inner = open_file_system(path)
    if not fs.get_file_info(inner).is_file:
        raise SbpError(f"{where}={path}: there is no such file: mend the path")
    is_text, named = KNOWN[like].form is TEXT and KINDS.get(split_suffixes(path)[0]) != "json", f"{where}={path}"
    rows = list(_documents(path, named) if is_text else _parsed(path, like, named))
    if not rows:
        raise SbpError(f"{named}: is empty: {wanted_form(like)}")
    seen: Counter[str] = Counter()
    for row in rows:
        seen[row["key"]] += 1
        if seen[row["key"]] > 1:
            row["key"] += f" ({seen[row['key']]})"
    return rows


def wanted_form(like: str) -> str:
    """What a line must be, for errors."""
    known = KNOWN[like]
    hub = f", or have the columns that lm-eval's {known.task} reads" if known.folder else ""
    return f"each line must be {known.form.shown}{hub}"


def choose_rows(rows: Sequence[Row], limit: int | None, seed: int) -> tuple[list[Row], list[Row]]:
    """Up to `limit` rows chosen by their keys, and those that are left; both in the file's order."""
    if limit is None or len(rows) <= limit:
        return list(rows), []
    chosen = {row["key"] for row in sorted(rows, key=lambda row: hash64("questions", seed, row["key"]))[:limit]}
    return [row for row in rows if row["key"] in chosen], [row for row in rows if row["key"] not in chosen]


def _documents(path: str, named: str) -> Iterator[Row]:
    """A plain text: WikiText's articles, each from its heading on; without headings, the whole is one document."""
    parts: list[list[str]] = [[]]
    for number, line in iter_lines(path, named):
        try:
            text = line.decode().rstrip("\n")
        except UnicodeDecodeError:
            raise SbpError(f"{named}:{number}: is not UTF-8: convert the file") from None
        if _HEADING.match(text) and parts[-1]:
            parts.append([])
        parts[-1].append(text)
    name = posixpath.basename(path)
    for number, part in enumerate(parts, start=1):
        if text := "\n".join(part).strip():
            yield {"key": f"{name}/{number}", "text": text}


def _parsed(path: str, like: str, named: str) -> Iterator[Row]:
    for where, row in iter_json(path, named, wanted_form(like)):
        if not isinstance(row, dict):
            raise SbpError(f"{where}: is not an object: {wanted_form(like)}")
        try:
            columns = KNOWN[like].columns_of(row)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise SbpError(f"{where}: {reason(error)}: {wanted_form(like)}") from None
        yield columns | {"key": str(row.get("id", where.rpartition(":")[2]))}


def reason(error: Exception) -> str:
    """What a row lacks, by the error that it led to."""
    return f"has no {error.args[0]}" if isinstance(error, KeyError) else one_line(error)
