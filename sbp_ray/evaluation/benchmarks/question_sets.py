"""From settings to what is asked: each benchmark's questions, drawn and ready for lm-eval, the same for every model."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from sbp_ray.artifacts import fingerprint_of
from sbp_ray.config import BenchmarkConfig, Config
from sbp_ray.errors import SbpError
from sbp_ray.evaluation.benchmarks.builtin import BUILT_IN, BuiltIn, Row
from sbp_ray.evaluation.benchmarks.own_tasks import own_task_names, require_own_task
from sbp_ray.evaluation.benchmarks.question_files import draw, read_rows


@dataclass(frozen=True)
class Asked:
    """One benchmark, ready to be asked."""

    name: str
    like: str
    """A built-in benchmark, or one of lm-eval's own tasks where there are no rows."""
    num_fewshot: int | None
    """None: what lm-eval's own task says."""
    max_length: int
    """Tokens of a prompt with its answer; longer ones lose their beginning."""
    seed: int
    max_examples: int | None
    rows: tuple[Row, ...] | None
    """Those that are asked, as the file holds them, each with its `key`; None for lm-eval's own tasks."""
    fewshot_rows: tuple[Row, ...]
    """From which the answered questions are taken."""
    num_rows: int | None
    """In the file."""
    file: str | None

    @property
    def built_in(self) -> BuiltIn | None:
        return None if self.rows is None else BUILT_IN[self.like]

    @property
    def fingerprint(self) -> str:
        """Of all that decides a model's answers."""
        return fingerprint_of(
            {
                "like": self.like,
                "num_fewshot": self.num_fewshot,
                "max_length": self.max_length,
                "seed": self.seed,
                "max_examples": self.max_examples if self.rows is None else None,
                "rows": None if self.rows is None else list(self.rows),
                "fewshot_rows": list(self.fewshot_rows),
                "lm_eval": version("lm_eval"),
            }
        )

    def texts(self) -> Mapping[str, Sequence[str]]:
        """The strings of each question by its key; empty for lm-eval's own tasks, whose data is theirs."""
        return {row["key"]: [*_strings({k: v for k, v in row.items() if k != "key"})] for row in self.rows or ()}


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for part in parts for text in _strings(part)]


def choose_questions(settings: Config) -> list[Asked]:
    """Read every file, check every row, and draw.

    Raises:
        SbpError: a benchmark is unknown, or its file missing or of another form.
    """
    for name, benchmark in settings.benchmarks.tasks.items():  # names first: they cost nothing
        if benchmark.file is None:
            _require_own_task(name, benchmark.like or name)
        elif (benchmark.like or name) not in BUILT_IN:
            raise SbpError(_unknown(name, benchmark.like or name, BUILT_IN, "a file needs a built-in benchmark"))
    return [_asked(name, benchmark, settings) for name, benchmark in settings.benchmarks.tasks.items()]


def _asked(name: str, benchmark: BenchmarkConfig, settings: Config) -> Asked:
    cfg, like = settings.benchmarks, benchmark.like or name
    common: dict[str, Any] = {
        "name": name,
        "like": like,
        "max_length": cfg.context_tokens or settings.pretrain.seq_len,
        "seed": cfg.seed,
        "max_examples": cfg.max_examples,
        "file": benchmark.file,
    }
    if benchmark.file is None:
        return Asked(num_fewshot=benchmark.num_fewshot, rows=None, fewshot_rows=(), num_rows=None, **common)
    built_in, where = BUILT_IN[like], f"benchmarks.tasks.{name}"
    rows = read_rows(benchmark.file, like, built_in, f"{where}.file")
    shots = built_in.num_fewshot if benchmark.num_fewshot is None else benchmark.num_fewshot
    if shots and built_in.form in ("text", "target"):
        raise SbpError(f"{where}.num_fewshot={shots}: {like} is a text to predict, without questions: leave it out")
    drawn, left = draw(rows, cfg.max_examples, cfg.seed)
    if shots and benchmark.fewshot_file:
        left = read_rows(benchmark.fewshot_file, like, built_in, f"{where}.fewshot_file")
    fewshot_rows = _fewshot_rows(drawn, left, shots, built_in, where) if shots else ()
    return Asked(num_fewshot=shots, rows=tuple(drawn), fewshot_rows=fewshot_rows, num_rows=len(rows), **common)


_FEWSHOT_POOL = 1000  # questions from which answered ones are drawn: as good as all, and cheap to send to every task


def _fewshot_rows(
    drawn: Sequence[Row], left: Sequence[Row], shots: int, built_in: BuiltIn, where: str
) -> tuple[Row, ...]:
    """Refuse too few: each subject that is asked needs as many as are shown."""
    subjects = {subject_of(row, built_in) for row in drawn}
    for subject in sorted(subjects):
        num = sum(subject_of(row, built_in) == subject for row in left)
        if num < shots:
            of = f" about {subject}" if subject else ""
            raise SbpError(
                f"{where}: num_fewshot={shots}, and {num} questions{of} are there beside those that are asked: give a "
                "fewshot_file, or lower num_fewshot or benchmarks.max_examples"
            )
    usable = [row for row in left if subject_of(row, built_in) in subjects]
    return tuple(usable if built_in.by_subject else usable[:_FEWSHOT_POOL])


def subject_of(row: Row, built_in: BuiltIn) -> str:
    """What parts a benchmark into tasks; empty where it is one."""
    return row.get("subject", "") if built_in.by_subject else ""


def _require_own_task(name: str, task: str) -> None:
    known = own_task_names()
    if task not in known:
        if task in BUILT_IN:
            raise SbpError(
                f"benchmarks.tasks.{name}: lm-eval has no task called {task}, which is ours: give its `file`"
            )
        fact = f"lm-eval {version('lm_eval')} has no task of that name"
        raise SbpError(_unknown(name, task, [*BUILT_IN, *known], fact))
    require_own_task(f"benchmarks.tasks.{name}", task)


def _unknown(name: str, task: str, known: Any, fact: str) -> str:
    near = difflib.get_close_matches(task, known, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(BUILT_IN)}"
    return f"benchmarks.tasks.{name}: no benchmark is called {task} ({fact}); {hint}"
