"""Whether the input was read well enough to go on: judged once all of it was read, since any row can be the first good
one."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from sbp_ray.config import IngestConfig
from sbp_ray.errors import SbpError
from sbp_ray.ingestion.records import Damage, RecordReader, SeenColumns
from sbp_ray.ingestion.units import Unit

logger = logging.getLogger(__name__)

_FILES_TOLD = 3
_FIRST_ROWS = 1000


class FileReport(NamedTuple):
    """What a file, or a part of it, holds; for errors."""

    file: str
    num_rows: int
    num_texts: int
    has_group: bool
    has_source: bool
    columns: list[str]
    types: Mapping[str, int]
    """What the text column holds that is no text."""
    damage: Damage | None

    @property
    def is_good(self) -> bool:
        has_columns = self.num_texts > 0 and self.has_group and self.has_source
        return self.damage is None and (self.num_rows == 0 or has_columns)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> FileReport:
        return cls(**{**fields, "damage": Damage(*fields["damage"]) if fields["damage"] else None})


def warn_of_first_rows(cfg: IngestConfig, unit: Unit) -> None:
    """Say early of a large input that its columns may be others; only all rows can tell.

    Raises:
        SbpError: the first file is of a kind that cannot be read.
    """
    seen = SeenColumns()
    path = unit.paths[0]
    rows = RecordReader(cfg.text_column, cfg.group_column, cfg.max_chars).read(path, 0, unit.num_parts, seen)
    num_read = sum(1 for _ in itertools.islice(rows, _FIRST_ROWS))
    if num_read == _FIRST_ROWS and not seen.num_texts:
        found = ", ".join(seen.names) or "none"
        logger.warning(f"ingest | {path}: no text in column {cfg.text_column!r} so far; the columns are {found}")


def merge_parts(reports: Iterable[FileReport]) -> list[FileReport]:
    """One report for each file that is not good."""
    merged: dict[str, FileReport] = {}
    for report in reports:
        if before := merged.get(report.file):
            report = FileReport(
                report.file,
                before.num_rows + report.num_rows,
                before.num_texts + report.num_texts,
                before.has_group or report.has_group,
                before.has_source or report.has_source,
                [*dict.fromkeys([*before.columns, *report.columns])],
                Counter(before.types) + Counter(report.types),
                before.damage or report.damage,
            )
        merged[report.file] = report
    return [report for report in merged.values() if not report.is_good]


def require_usable(
    cfg: IngestConfig, num_rows: int, drops: Mapping[str, int], files: list[FileReport], quarantine: str
) -> None:
    """Go on, with a warning of what was put aside, or say why not.

    Args:
        num_rows: read.
        drops: rows that cannot be used, by reason.
        files: those that are not good.
        quarantine: where what was put aside is listed.

    Raises:
        SbpError: too many files are damaged, or too many rows cannot be used, or a file has not the group column or the
            source column.
    """
    damaged = [report for report in files if report.damage]
    textless = [report for report in files if report.num_rows and not report.num_texts]
    num_bad = sum(drops.values())
    if damaged:
        told = f"{len(damaged):,} input files cannot be read to their end: {_describe_damage(damaged)}"
        if len(damaged) > cfg.max_damaged_files:
            raise SbpError(
                f"{told}: mend them or leave them out, or let ingest.max_damaged_files be more than "
                f"{cfg.max_damaged_files}, and use --redo ingest"
            )
        logger.warning(f"ingest | {told}")
    if num_rows == 0:
        raise SbpError(f"{', '.join(cfg.input)}: holds no documents: give files with text in ingest.input")
    if textless and num_bad == num_rows:
        raise SbpError(_describe_columns(cfg, textless[0]))
    reasons = ", ".join(
        f"{count:,} {reason}" for reason, count in sorted(drops.items(), key=lambda x: (-x[1], x[0]))[:3]
    )
    if num_bad > cfg.max_bad_share * num_rows or num_bad == num_rows:
        raise SbpError(
            f"{num_bad:,} of {num_rows:,} input rows ({num_bad / num_rows:.1%}) cannot be used, which is more than "
            f"ingest.max_bad_share ({cfg.max_bad_share}): {reasons}: see {quarantine}, then mend the input "
            "or raise the share, and use --redo ingest"
            + (f" ({_describe_columns(cfg, textless[0])})" if textless else "")
        )
    for report in files:
        if report.num_texts and not report.has_group:
            raise SbpError(_describe_missing("group_column", cfg.group_column, report))
        if report.num_texts and not report.has_source:
            raise SbpError(_describe_missing("source_column", cfg.source_column, report))
    if num_bad:
        logger.warning(f"ingest | {num_bad:,} of {num_rows:,} rows put aside ({reasons}): {quarantine}")


def require_a_group_for_each_split(cfg: IngestConfig, few_hashes: Iterable[int]) -> None:
    """Raises SbpError where there are two groups and two splits are held out, with one group each at least.

    Args:
        few_hashes: distinct hashes of the groups, or of the documents: all, or `parsing.FEW` at least.
    """
    if len({*few_hashes}) == 2 and cfg.validation_share and cfg.development_share:
        kinds, other = ("documents", "") if cfg.split_by == "document" else ("groups", ", or ingest.split_by=document")
        raise SbpError(
            f"the input has two {kinds}: one is held out for validation and one for development, which leaves none to "
            f"train on: set ingest.development_share=0{other}"
        )


def _describe_damage(damaged: list[FileReport]) -> str:
    places = [
        f"{report.file} from row {report.damage.line:,} on ({report.damage.reason}; "
        f"{report.damage.bytes_unread:,} bytes unread)"
        for report in damaged[:_FILES_TOLD]
        if report.damage
    ]
    return ", ".join(places) + (", …" if len(damaged) > _FILES_TOLD else "")


def _describe_missing(setting: str, column: str | None, report: FileReport) -> str:
    found = f"one of {', '.join(report.columns)}, or to " if report.columns else ""
    return f"{report.file}: no column {column!r}: set ingest.{setting} to {found}null"


def _describe_columns(cfg: IngestConfig, report: FileReport) -> str:
    """Of a file without a text."""
    held = ", ".join(Counter(report.types).keys())
    found = ", ".join(name for name in report.columns if name != cfg.text_column)
    remedy = f"set ingest.text_column to one of {found}" if found else "give rows in which it is a string"
    return f"{report.file}: no text in column {cfg.text_column!r}, which holds {held}: {remedy}"
