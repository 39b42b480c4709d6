"""Datasets of the Hugging Face hub, or in a folder that the `datasets` library takes for one -> rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from sbp_ray.errors import SbpError, one_line
from sbp_ray.ingestion.row_sources import Row
from sbp_ray.input_files import DatasetName


def hugging_face_rows(path: str, part: int, num_parts: int) -> Iterator[Row]:
    """Rows of a dataset, or of one of its shards, in which they are counted."""
    import datasets

    dataset = open_hugging_face(path)
    try:
        yield from enumerate(dataset.shard(num_parts, part) if num_parts > 1 else dataset, start=1)
    except (OSError, ValueError, TypeError, LookupError, pa.ArrowException, datasets.exceptions.DatasetsError) as error:
        raise SbpError(
            f"{path}: {_describe_shard(path, part, num_parts, dataset.features or {})} ({one_line(error)}): mend it, "
            "or name the dataset's files in ingest.input, where each may have other columns and types"
        ) from None


def _describe_shard(path: str, part: int, num_parts: int, first: Mapping[str, Any]) -> str:
    """Which file cannot be read, and what is in it that the dataset's first file, with these columns, has not."""
    import datasets

    name, config, revision = DatasetName.parse(path)
    said = f"shard {part} of {num_parts} cannot be read"
    try:
        files = datasets.load_dataset_builder(name, config, revision=revision).config.data_files or {}
        if len(files.get("train", ())) != num_parts:
            return said
        file = files["train"][part]
        said = f"{file} cannot be read"
        found = datasets.load_dataset(name, data_files=file, revision=revision, split="train", streaming=True).features
    except (OSError, ValueError, pa.ArrowException, datasets.exceptions.DatasetsError):
        return said
    for column, kind in (found or {}).items():
        if column not in first:
            return f"{said}, since the dataset's first file has no column {column!r}"
        if kind != first[column]:
            here, there = (getattr(feature, "dtype", feature) for feature in (kind, first[column]))
            return f"{said}, since its column {column!r} is of {here}, and of {there} in the dataset's first file"
    return said


def open_hugging_face(path: str) -> Any:
    """The streaming train split of a `DatasetName`.

    Raises:
        SbpError: there is no such dataset, or no network.
    """
    import datasets

    name, config, revision = DatasetName.parse(path)
    try:
        return datasets.load_dataset(name, config, revision=revision, split="train", streaming=True)
    except (OSError, ValueError) as error:
        raise SbpError(
            f"{path}: cannot be opened ({one_line(error)}): check the name and the network, or download it first"
        ) from None
