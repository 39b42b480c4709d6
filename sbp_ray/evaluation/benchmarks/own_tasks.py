"""lm-eval's own tasks by name, without its index, whose making reads 14,000 YAML files and takes half a minute.

The names are looked up in the files as text, and only the folder that holds the task is indexed.
"""

from __future__ import annotations

import functools
import logging
import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sbp_ray.errors import SbpError

_NAME = re.compile(rb"^\"?(?:task|group)\"?: *[\"']?([\w.\-+/]+)[\"']? *$", re.MULTILINE)


@functools.cache
def own_task_names() -> dict[str, Path]:
    """Tasks and groups, each with the folder under lm-eval's that defines it."""
    spec = find_spec("lm_eval")
    assert spec is not None and spec.origin is not None
    root = Path(spec.origin).parent / "tasks"
    found: dict[str, Path] = {}
    for folder, _, files in os.walk(root):
        for name in files:
            if name.endswith((".yaml", ".yml")):
                path = Path(folder, name)
                top = root / path.relative_to(root).parts[0]
                for task in _NAME.findall(path.read_bytes()):
                    found.setdefault(task.decode(), top)
    return found


def load_own_task(name: str) -> dict[str, Any]:
    """The task, or those of a group, by name, with their data.

    Raises:
        KeyError: lm-eval has no task of that name.
        Exception: whatever the task's code and its download raise.
    """
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of what is meant
    folder = own_task_names()[name]
    return TaskManager(include_defaults=False, include_path=str(folder)).load([name])["tasks"]


def require_own_task(setting: str, name: str) -> None:
    """Load the task's data now: it is downloaded, and kept for the models.

    Raises:
        SbpError: it cannot be had.
    """
    offline = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("HF_DATASETS_OFFLINE")
    try:
        load_own_task(name)
    except Exception as error:
        why = "the environment forbids downloads" if offline else type(error).__name__
        raise SbpError(
            f"{setting}: the data of lm-eval's task {name} cannot be loaded ({why}): connect to the network once, or "
            "give its questions as a `file`"
        ) from error
