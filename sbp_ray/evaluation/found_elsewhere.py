"""What an experiment with controls found on the same corpus: a run says it beside its own answer, which has none."""

from __future__ import annotations

from typing import Any

from sbp_ray.config import EvalConfig
from sbp_ray.errors import SbpError, one_line
from sbp_ray.file_formats import open_bytes

ANSWER = "answer.txt"
"""The answer of an experiment in a few sentences, one a line, in its run_dir."""
_MAX_BYTES = 10_000


def read_found_elsewhere(cfg: EvalConfig) -> dict[str, Any] | None:
    """`file` and `says`, its sentences; None where no file is named.

    Raises:
        SbpError: it cannot be read, or is no such answer.
    """
    if cfg.found_elsewhere is None:
        return None
    where = f"eval.found_elsewhere={cfg.found_elsewhere}"
    try:
        with open_bytes(cfg.found_elsewhere) as stream:
            found = stream.read(_MAX_BYTES + 1)
        says = [line.strip() for line in found.decode().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise SbpError(f"{where}: cannot be read: {one_line(error)}: name the {ANSWER} of an experiment") from None
    if not says or len(found) > _MAX_BYTES:
        what = "holds nothing" if not says else f"holds more than {_MAX_BYTES:,} bytes"
        raise SbpError(f"{where}: {what}: name the {ANSWER} of an experiment")
    return {"file": cfg.found_elsewhere, "says": says}
