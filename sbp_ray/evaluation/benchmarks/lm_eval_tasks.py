"""Tasks out of lm-eval's own task files: with the user's rows as their data set, or with their own.

lm-eval's index of all its tasks takes half a minute to make, since 14,000 YAML files are parsed for it. Here only the
folder that holds a task is indexed: `catalog` knows the folders of the benchmarks that take a file, and any other
name is looked up in the YAML files as text.
"""

from __future__ import annotations

import functools
import logging
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sbp_ray.errors import SbpError
from sbp_ray.evaluation.benchmarks.catalog import KNOWN, Row
from sbp_ray.evaluation.benchmarks.question_files import reason, wanted_form

LIKELIHOOD = "|likelihood"
"""Ends the name of the second task of a benchmark that generates: it scores the answer that is expected."""
# An answer ends with its line; one of more tokens than this is cut off.
_MAX_GENERATED = 64
_NAME = re.compile(rb"^\"?(?:task|group)\"?: *[\"']?([\w.\-+/]+)[\"']? *$", re.MULTILINE)


def _root() -> Path:
    spec = find_spec("lm_eval")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "tasks"


@functools.cache
def _manager(folder: Path | None) -> Any:
    """lm-eval's loader, which knows the tasks of one folder."""
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of what is meant
    return TaskManager(include_defaults=False, include_path=str(folder) if folder else None)


# Tasks on the user's rows


def rows_by_subject(like: str, rows: Sequence[Row]) -> dict[str, list[Row]]:
    """What parts a benchmark into tasks; all under one empty subject where it is one task."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[row.get("subject", "") if KNOWN[like].has_subjects else ""].append(row)
    return dict(sorted(found.items()))


def build_tasks(like: str, rows: Sequence[Row], fewshot_rows: Sequence[Row] = ()) -> dict[str, Any]:
    """lm-eval's own task on these rows, or its tasks of their subjects; by name.

    Args:
        fewshot_rows: from which the answered questions are taken.

    Raises:
        Exception: whatever the task's templates and functions raise for rows that lack what they read.
    """
    shots = rows_by_subject(like, fewshot_rows)
    tasks = {}
    for subject, part in rows_by_subject(like, rows).items():
        name, data = KNOWN[like].task.format(subject=subject), {"test": part, "shots": shots.get(subject, [])}
        tasks[name] = task = _local_task(like, name, data)
        if task.OUTPUT_TYPE == "generate_until":
            task.set_config("generation_kwargs", {"max_gen_toks": _MAX_GENERATED}, update=True)
            tasks[name + LIKELIHOOD] = _local_task(like, name, data, **_LIKELIHOOD_OF_FIRST)
    return tasks


_LIKELIHOOD_OF_FIRST = {
    "output_type": "multiple_choice",
    "doc_to_choice": "{{answer.aliases[:1]}}",
    "doc_to_target": 0,
    "generation_kwargs": None,
    "filter_list": None,
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
_OVERRIDES: Mapping[str, Mapping[str, Any]] = {
    # lm-eval 0.4.13 takes the list of right choices for the shown answer, and stops: the answer is named.
    "webqs": {"fewshot_config": {"doc_to_target": lambda doc: min(doc["answers"])}},
    "text": {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "text", "metric_list": []},
}


def _local_task(like: str, name: str, data: Mapping[str, Sequence[Row]], **overrides: Any) -> Any:
    import datasets

    datasets.disable_progress_bars()
    splits = {split: datasets.Dataset.from_list(list(rows)) for split, rows in data.items() if rows}
    config = {
        "task": name,
        "custom_dataset": lambda **_: splits,
        "training_split": None,
        "validation_split": None,
        "test_split": "test",
        "fewshot_split": "shots" if "shots" in splits else None,
        **_OVERRIDES.get(like, {}),
        **overrides,
    }
    folder = KNOWN[like].folder
    if not folder:
        [task] = _manager(None).load([config])["tasks"].values()
        return task
    manager = _manager(_root() / folder)
    if name not in manager.task_index:
        raise ValueError(f"lm-eval has no task {name}: its subject is unknown")
    [task] = manager.load([{"group": like, "task": [config]}])["tasks"].values()
    return task


def check_rows(like: str, rows: Sequence[Row], where: str) -> None:
    """Render every question once as the task does.

    Raises:
        SbpError: a question lacks what the task reads; names it.
    """
    for part in rows_by_subject(like, rows).values():
        try:
            tasks = build_tasks(like, part)
        except Exception as error:  # of templates, of the task's own functions, or of Arrow: each has its own kind
            if len(part) == 1:
                raise SbpError(f"{where}: {_reason(like, part[0], error)}") from error
            for row in part:  # the first that fails by itself is named
                check_rows(like, [row], where)
            raise SbpError(f"{where}: the questions are no table: give each column one type in all lines") from error
        for task in tasks.values():
            for row, doc in zip(part, part if task.config.process_docs is None else task.eval_docs, strict=True):
                try:
                    _require_answerable(task, doc)
                except Exception as error:
                    raise SbpError(f"{where}: {_reason(like, row, error)}") from error


def _reason(like: str, row: Row, error: Exception) -> str:
    return f"question {row['key']}: {reason(error)}: {wanted_form(like)}"


def _require_answerable(task: Any, doc: Row) -> None:
    """Raise for a question that lacks a column, has an empty text, or no right answer among its choices."""
    config = task.config
    for column in (config.doc_to_text, config.doc_to_target, config.doc_to_choice):
        if isinstance(column, str) and column.isidentifier() and column not in doc:
            raise KeyError(column)  # lm-eval would take the column's name for the text
    text, target = task.doc_to_text(doc), task.doc_to_target(doc)
    choices = None if config.doc_to_choice is None else task.doc_to_choice(doc)
    texts = [*_listed(target), *(choices or ()), *([] if task.OUTPUT_TYPE == "loglikelihood_rolling" else [text])]
    if any(not str(part).strip() for part in texts):
        raise ValueError("has an empty text")
    right = _listed(text if task.multiple_input else target)
    if choices is not None and not all(type(index) is int and 0 <= index < len(choices) for index in right):
        raise ValueError("has a right answer that is none of its choices")


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


# lm-eval's tasks on their own data


@functools.cache
def own_task_names() -> dict[str, Path]:
    """Tasks and groups, each with the folder under lm-eval's that defines it."""
    root, found = _root(), dict[str, Path]()
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
    tasks: dict[str, Any] = _manager(own_task_names()[name]).load([name])["tasks"]
    return tasks


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
