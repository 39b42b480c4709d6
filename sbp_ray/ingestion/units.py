"""Input files -> units of work: small files together, large ones in parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sbp_ray.decompression import DamagedFileError
from sbp_ray.file_formats import is_compressed, kind_of, open_bytes, read_head
from sbp_ray.ingestion.hugging_face import open_hugging_face
from sbp_ray.ingestion.row_sources import count_row_groups
from sbp_ray.input_files import HUGGING_FACE, FoundFiles, find_input_files

_UNIT_BYTES = 64 << 20  # of small files that are read together
_UNIT_FILES = 1000
_PART_BYTES = 1 << 30  # of a plain JSON lines or Parquet file that several workers read


class Unit(NamedTuple):
    """Input that one worker reads in one go."""

    paths: tuple[str, ...]
    part: int = 0
    num_parts: int = 1


def input_units(patterns: Sequence[str]) -> tuple[list[Unit], FoundFiles]:
    """The work, in an order that depends on the input alone, and the files that it reads.

    Small files go together, in their order; large JSON lines and Parquet files are read in parts.

    Raises:
        SbpError: a pattern matches nothing that can be read.
    """
    names = [name for name in patterns if name.startswith(HUGGING_FACE)]
    found = find_input_files(name for name in patterns if name not in names)
    units: list[Unit] = []
    together: list[str] = []
    num_bytes = 0
    for path, size in found.files:
        if together and (num_bytes + size > _UNIT_BYTES or len(together) == _UNIT_FILES):
            units.append(Unit(tuple(together)))
            together, num_bytes = [], 0
        num_parts = _num_parts(path, size)
        if num_parts > 1:
            units += [Unit((path,), part, num_parts) for part in range(num_parts)]
        else:
            together.append(path)
            num_bytes += size
    if together:
        units.append(Unit(tuple(together)))
    for name in names:
        num_parts = open_hugging_face(name).num_shards
        units += [Unit((name,), part, num_parts) for part in range(num_parts)]
    return units, found


def _num_parts(path: str, size: int) -> int:
    """In how many parts a file is read; a compressed one only from its beginning."""
    wanted = -(-size // _PART_BYTES)
    if wanted <= 1:
        return 1
    try:
        with open_bytes(path) as stream:
            kind, is_plain = kind_of(path, read_head(stream)), not is_compressed(stream)
        if kind == "parquet":
            return max(1, min(wanted, count_row_groups(path)))
    except DamagedFileError:  # whoever reads it will say so
        return 1
    return wanted if kind == "json" and is_plain else 1
