"""The synthetic corpus as others read it: text, id, source and origin of each document, in shards, with a card.

jsonl     documents/part-00000.jsonl.gz: fields as in Dolma, provenance under `metadata`
parquet   documents/part-00000.parquet: provenance in columns of their own
hf        data/train-00000-of-00008.parquet: what `datasets.load_dataset(folder)` reads
"""

from __future__ import annotations

import gzip
import json
import logging
import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from sbp_ray.artifacts import Artifact
from sbp_ray.errors import SbpError
from sbp_ray.schema import SYNTHETIC

logger = logging.getLogger(__name__)

Format = Literal["jsonl", "parquet", "hf"]
_PROVENANCE = [name for name in SYNTHETIC.names if name not in ("doc_id", "text", "input_ids")]
CARD = "README.md"
_METHOD = "Synthetic Bootstrapped Pretraining (arXiv 2509.15248), as sbp_ray does it"
_BY_OUR_MODEL = {
    "d1": f"that was given one real document and tuned to write a related one: {_METHOD}.",
    "none": f"that was given nothing to write from: a control for {_METHOD}.",
    "continue": f"that was given the first half of one real document and went on with it: a control for {_METHOD}.",
}
"""By `synthesize.condition`."""


def export_corpus(synthetic: Artifact, report: Artifact, folder: str, form: Format, licence: str) -> None:
    """Write all shards, and the card last.

    Args:
        report: whose measures of the text the card quotes, where it is there.
        folder: is made; files of an earlier export with as many shards are replaced.

    Raises:
        SbpError: the synthetic corpus is not finished, or the folder holds files of another export.
    """
    manifest = synthetic.manifest()
    if manifest is None:
        raise SbpError(f"{synthetic.url} is not there yet: run jobs/synthesize.py first")
    out = Artifact("export", folder if "://" in folder else str(Path(folder).expanduser().absolute()))
    names = synthetic.files(suffix=".parquet")
    targets = [_file_of(form, number, len(names)) for number in range(len(names))]
    _refuse_other_files(out, targets)
    num_documents = 0
    for name, target in zip(names, targets, strict=True):
        table = _exported(synthetic.read_table(name, [n for n in SYNTHETIC.names if n != "input_ids"]))
        num_documents += len(table)
        if form == "jsonl":
            out.write_bytes(target, gzip.compress(_json_lines(table), mtime=0))
        else:
            out.write_table(target, table)
    summary = report.read_bytes("summary.txt").decode() if report.manifest() is not None else ""
    out.write_bytes(CARD, _card(manifest, summary, form, licence, num_documents).encode())
    logger.info(f"export | {num_documents:,} documents in {len(names)} files: {out.url}")


def _file_of(form: Format, number: int, num_files: int) -> str:
    if form == "hf":
        return f"data/train-{number:05d}-of-{num_files:05d}.parquet"
    return f"documents/part-{number:05d}.{'jsonl.gz' if form == 'jsonl' else 'parquet'}"


def _refuse_other_files(out: Artifact, targets: Sequence[str]) -> None:
    """Whoever reads the folder reads all that is in it, also what an export of more shards or another form has left."""
    there = {name for folder in {posixpath.dirname(target) for target in targets} for name in out.files(folder)}
    if left := sorted(there - {*targets}):
        raise SbpError(
            f"{out.url}: {left[0]} is no part of this export, and would be read as one: remove what is not "
            f"({len(left):,} of the files there), or give another folder"
        )


def _exported(table: pa.Table) -> pa.Table:
    """`text`, `id`, `source`, then provenance; ids as hex digits."""
    columns: dict[str, Any] = {
        "text": table["text"],
        "id": pa.array([doc_id.hex() for doc_id in table["doc_id"].to_pylist()], pa.string()),
        "source": pa.array(["sbp_ray"] * len(table), pa.string()),
    }
    columns |= {name: table[name] for name in _PROVENANCE}
    columns["d1_id"] = pa.array([d1_id.hex() for d1_id in table["d1_id"].to_pylist()], pa.string())
    return pa.table(columns)


def _json_lines(table: pa.Table) -> bytes:
    lines = []
    for row in table.to_pylist():
        metadata = {name: row.pop(name) for name in _PROVENANCE}
        lines.append(json.dumps({**row, "metadata": metadata}, ensure_ascii=False))
    return "".join(f"{line}\n" for line in lines).encode()


def _card(manifest: dict[str, Any], summary: str, form: Format, licence: str, num_documents: int) -> str:
    """What a reader of the dataset must know, in Markdown; the head is what the hub reads."""
    files = "\nconfigs:\n- config_name: default\n  data_files: data/*.parquet" if form == "hf" else ""
    settings = manifest["settings"]["synthesize"]
    outside = settings.get("rephrase") or {}
    plain = settings | {f"rephrase.{name}": value for name, value in outside.items()}
    rows = [*manifest["inputs"].items(), *((name, value) for name, value in plain.items() if _is_plain(value))]
    drops = sorted(manifest["stats"].get("drops", {}).items(), key=lambda item: -item[1])
    parts = [
        f"---\nlicense: {licence}\ntags:\n- synthetic{files}\n---\n# Synthetic documents",
        f"{num_documents:,} documents, each written by {_describe_writer(settings)} The texts are not checked for "
        "truth, and can repeat what the corpus says, of people too.",
        "Fields: `text`, `id`, `source`, and of each document the real one (`d1_id`), its sample's number and seed, "
        "how it was drawn, why it ended (`finish_reason`), and the fingerprint of the model, or the name of an outside "
        "one (`synthesizer`).",
        "## How it was made\n\n| what | value |\n|---|---|\n"
        + "\n".join(f"| {key} | {_in_a_cell(value)} |" for key, value in rows),
    ]
    if drops:
        lines = "\n".join(f"| {reason} | {count:,} |" for reason, count in drops)
        parts.append(f"## What was dropped\n\n| reason | documents |\n|---|---|\n{lines}")
    if summary:
        parts.append(f"## What was measured\n\n```\n{summary.strip()}\n```")
    return "\n\n".join(parts) + "\n"


def _describe_writer(settings: dict[str, Any]) -> str:
    """Which model wrote, from what."""
    if outside := settings.get("rephrase"):
        related = " and a related one" if outside["of"] == "pair" else ""
        return (
            f"an outside model, `{outside['model']}`, that was given one real document{related}: a rival of {_METHOD}, "
            "and not made by it."
        )
    written = _BY_OUR_MODEL[settings.get("condition", "d1")]
    return f"a language model {written} No other model wrote or chose a word."


def _in_a_cell(value: Any) -> str:
    """An instruction has lines, and may have bars, which would end the cell."""
    return " ".join(str(value).replace("|", "\\|").split())


def _is_plain(value: Any) -> bool:
    return isinstance(value, int | float | str)
