"""From settings to questions: those of each benchmark, chosen and ready for lm-eval, the same for every model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any

from sbp_ray.artifacts import fingerprint_of
from sbp_ray.config import BenchmarkConfig, Config
from sbp_ray.errors import SbpError, did_you_mean
from sbp_ray.evaluation.benchmarks.catalog import ANSWERS, CHOICES, KNOWN, Row
from sbp_ray.evaluation.benchmarks.lm_eval_tasks import check_rows, own_task_names, require_own_task, rows_by_subject
from sbp_ray.evaluation.benchmarks.question_files import choose_rows, read_rows
from sbp_ray.text.contamination import iter_strings


@dataclass(frozen=True)
class QuestionSet:
    """The questions of one benchmark, ready to be asked."""

    name: str
    like: str
    """A known benchmark, or one of lm-eval's own tasks where there are no rows."""
    num_fewshot: int | None
    """None: what lm-eval's own task says."""
    max_length: int
    """Tokens of a prompt with its answer; longer ones lose their beginning."""
    seed: int
    max_examples: int | None
    """Of lm-eval's own data; rows have been chosen."""
    rows: tuple[Row, ...] | None
    """Those that are asked, in the columns that lm-eval's task reads, each with its `key`; None: lm-eval's own data."""
    fewshot_rows: tuple[Row, ...]
    """From which the answered questions are taken."""
    num_rows: int | None
    """In the file."""
    file: str | None

    @cached_property
    def fingerprint(self) -> str:
        """Of all that decides a model's answers."""
        recipe = {name: value for name, value in asdict(self).items() if name not in ("name", "num_rows", "file")}
        return fingerprint_of(recipe | {"lm_eval": version("lm_eval")})

    def texts(self) -> Mapping[str, Sequence[str]]:
        """The strings of each question by its key; empty for lm-eval's own data."""
        return {row["key"]: list(iter_strings(row | {"key": None})) for row in self.rows or ()}


def choose_questions(settings: Config) -> list[QuestionSet]:
    """Read every file, choose the questions, and check that lm-eval can ask them.

    Raises:
        SbpError: a benchmark is unknown, or its file missing or of another form.
    """
    for name, benchmark in settings.benchmarks.tasks.items():  # names first: they cost nothing
        if benchmark.file is None:
            _require_own_task(name, benchmark.like or name)
        elif (benchmark.like or name) not in KNOWN:
            raise SbpError(_unknown(name, benchmark.like or name, KNOWN, "a file needs one of ours"))
    return [_question_set(name, benchmark, settings) for name, benchmark in settings.benchmarks.tasks.items()]


def _question_set(name: str, benchmark: BenchmarkConfig, settings: Config) -> QuestionSet:
    cfg, like = settings.benchmarks, benchmark.like or name
    common: dict[str, Any] = {
        "name": name,
        "like": like,
        "max_length": cfg.context_tokens or settings.pretrain.seq_len,
        "seed": cfg.seed,
        "max_examples": cfg.max_examples if benchmark.file is None else None,
        "file": benchmark.file,
    }
    if benchmark.file is None:
        return QuestionSet(num_fewshot=benchmark.num_fewshot, rows=None, fewshot_rows=(), num_rows=None, **common)
    known, where = KNOWN[like], f"benchmarks.tasks.{name}"
    rows = read_rows(benchmark.file, like, f"{where}.file")
    shots = known.num_fewshot if benchmark.num_fewshot is None else benchmark.num_fewshot
    if shots and known.form not in (CHOICES, ANSWERS):
        raise SbpError(f"{where}.num_fewshot={shots}: {like} is a text to predict, without questions: leave it out")
    chosen, left = choose_rows(rows, cfg.max_examples, cfg.seed)
    check_rows(like, chosen, f"{where}.file={benchmark.file}")
    if shots and benchmark.fewshot_file:
        left = read_rows(benchmark.fewshot_file, like, f"{where}.fewshot_file")
    fewshot_rows = _fewshot_rows(like, chosen, left, shots, where) if shots else ()
    check_rows(like, fewshot_rows, f"{where}.fewshot_file={benchmark.fewshot_file or benchmark.file}")
    return QuestionSet(num_fewshot=shots, rows=tuple(chosen), fewshot_rows=fewshot_rows, num_rows=len(rows), **common)


# Answered questions are taken from the first so many: as good as all, and cheap to send to every task.
_FEWSHOT_POOL = 1000


def _fewshot_rows(like: str, chosen: Sequence[Row], left: Sequence[Row], shots: int, where: str) -> tuple[Row, ...]:
    """Refuse too few: each subject that is asked needs as many as are shown."""
    by_subject = rows_by_subject(like, left)
    usable = {subject: by_subject.get(subject, []) for subject in rows_by_subject(like, chosen)}
    for subject, rows in usable.items():
        if len(rows) < shots:
            of = f" about {subject}" if subject else ""
            raise SbpError(
                f"{where}: num_fewshot={shots}, and {len(rows)} questions{of} are there beside those that are asked: "
                "give a fewshot_file, or lower num_fewshot or benchmarks.max_examples"
            )
    return tuple(row for rows in usable.values() for row in rows[:_FEWSHOT_POOL])


def _require_own_task(name: str, task: str) -> None:
    known = own_task_names()
    if task not in known:
        if task in KNOWN:
            raise SbpError(
                f"benchmarks.tasks.{name}: lm-eval has no task called {task}, which is ours: give its `file`"
            )
        fact = f"lm-eval {version('lm_eval')} has no task of that name"
        raise SbpError(_unknown(name, task, [*KNOWN, *known], fact))
    require_own_task(f"benchmarks.tasks.{name}", task)


def _unknown(name: str, task: str, known: Any, fact: str) -> str:
    hint = did_you_mean(task, known, KNOWN)
    return f"benchmarks.tasks.{name}: no benchmark is called {task} ({fact}); {hint}"
