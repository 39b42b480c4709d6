"""From a command line to a committed artifact: config, inputs, lock, cluster, stage, manifest."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from sbp_ray import __version__
from sbp_ray.artifacts import MANIFEST, STARTED, Artifact, fingerprint_of
from sbp_ray.config import Config, TrackingConfig
from sbp_ray.config_file import load_config
from sbp_ray.errors import SbpError, out_of_room
from sbp_ray.logs import duration, set_up_logging
from sbp_ray.provenance import provenance
from sbp_ray.sources import HUGGING_FACE, list_input_files
from sbp_ray.text.contamination import list_evaluation_files
from sbp_ray.training.journal import METRICS
from sbp_ray.training.tracking import refuse_missing_library, tracked

logger = logging.getLogger(__name__)

Stats = dict[str, Any]

FOLDERS = {
    "corpus": "1_corpus",
    "embeddings": "2_embeddings",
    "neighbors": "3_neighbors",
    "pairs": "4_pairs",
    "base_lm": "5_base_lm",
    "synthesizer": "6_synthesizer",
    "synthetic": "7_synthetic",
    "lm": "8_lm",
    "report": "9_report",
}


@dataclass(frozen=True)
class Stage:
    """One arrow of the flow: what it reads, what it writes, and which settings decide the result."""

    name: str
    job: str
    """The file under jobs/ that runs it."""
    reads: tuple[str, ...]
    writes: str
    sections: tuple[str, ...]
    """Config sections that go into the artifact's fingerprint, without `_NOT_IN_RECIPE`."""
    overrides: tuple[str, ...] = ()
    """Settings that tell two runs of one job apart."""


STAGES = (
    Stage("ingest", "ingest", (), "corpus", ("ingest", "decontaminate")),
    Stage("embed", "embed", ("corpus",), "embeddings", ("embed",)),
    Stage("neighbors", "neighbors", ("embeddings",), "neighbors", ("neighbors",)),
    Stage("pair", "pair", ("neighbors",), "pairs", ("pair",)),
    Stage(
        "pretrain-repetition", "pretrain", ("corpus",), "base_lm", ("model", "pretrain"), ("pretrain.arm=repetition",)
    ),
    Stage("tune", "tune", ("corpus", "pairs", "base_lm"), "synthesizer", ("tune",)),
    Stage(
        "synthesize",
        "synthesize",
        ("corpus", "embeddings", "synthesizer"),
        "synthetic",
        ("synthesize", "engine", "decontaminate"),
    ),
    Stage(
        "pretrain-sbp",
        "pretrain",
        ("corpus", "synthetic"),
        "lm",
        ("model", "pretrain", "mixture"),
        ("pretrain.arm=sbp",),
    ),
    Stage(
        "eval",
        "eval",
        ("corpus", "embeddings", "neighbors", "pairs", "base_lm", "synthesizer", "synthetic", "lm"),
        "report",
        ("eval", "benchmarks"),
    ),
)


_TRAINS = ("pretrain", "tune")  # jobs that leave curves


@dataclass
class Job:
    """A stage about to run: its settings, the artifacts it reads and the one it writes."""

    stage: Stage
    config: Config
    inputs: dict[str, Artifact]
    output: Artifact


RunStage = Callable[[Job], Stats]


def main(job_name: str, run: RunStage) -> None:
    """The whole life of `python jobs/<job_name>.py --config FILE [section.key=value …]`; exits the process."""
    exit_with(lambda: _run_one(job_name, run))


def main_pipeline(runs: dict[str, RunStage]) -> None:
    """The whole life of `python jobs/pipeline.py`; `runs` maps each job's name to its wiring."""
    exit_with(lambda: _run_all(runs))


def exit_with(work: Callable[[], None]) -> NoReturn:
    """Status 0 done, 1 an error the user can fix (one line), 130 interrupted, 70 a bug of ours (with traceback)."""
    try:
        work()
    except SbpError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted: run the same command again to go on from here", file=sys.stderr)
        sys.exit(130)
    except Exception as error:  # noqa: BLE001  only to leave with another status than 1: the user can fix that
        if said := out_of_room(error):
            print(f"error: {said}", file=sys.stderr)
            sys.exit(1)
        traceback.print_exc()
        sys.exit(70)
    sys.exit(0)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as everything does that the user can fix."""

    def error(self, message: str) -> NoReturn:
        raise SbpError(f"{message}: see python {self.prog} --help")


def _run_one(job_name: str, run: RunStage) -> None:
    config, redo = _parse(job_name)
    [stage] = [s for s in STAGES if s.job == job_name and _arm_fits(s, config)]
    with locked(config.run_dir):
        _redo(config, redo)
        if _is_done(stage, config):
            logger.info(f"{stage.name} | done already: {artifact(config, stage.writes).url}")
            return
        _require_inputs(stage, config)
        from sbp_ray.cluster import connected  # Ray: not before the settings and inputs are known to be good

        with connected(config, [job_name]):
            _execute(stage, config, run)


def _run_all(runs: dict[str, RunStage]) -> None:
    config, redo = _parse("pipeline")
    start = time.monotonic()
    with locked(config.run_dir):
        _redo(config, redo)
        todo = [stage for stage in STAGES if not _is_done(stage, config)]
        for stage in STAGES:
            if stage not in todo:
                logger.info(f"{stage.name} | done already")
        if todo:
            from sbp_ray.cluster import connected

            _check_what_is_evaluated(config)
            with connected(config, [stage.job for stage in todo]):
                for stage in todo:
                    logger.info(f"stage {STAGES.index(stage) + 1} of {len(STAGES)} | {stage.name}")
                    _execute(stage, config, runs[stage.job])
    report = artifact(config, "report")
    print(report.read_bytes("summary.txt").decode(), end="")
    print(f"report: {report.path('report.html')}")
    print(f"wall time: {duration(time.monotonic() - start)}")


def _check_what_is_evaluated(config: Config) -> None:
    """Refuse now what the last stage would refuse after hours."""
    if config.eval.questions is not None:
        from sbp_ray.evaluation.likelihood.closed_book import check_questions

        check_questions(config.eval)
    if config.benchmarks.tasks:
        from sbp_ray.evaluation.benchmarks.question_sets import choose_questions

        choose_questions(config)
    if config.benchmarks.judge is not None:
        from sbp_ray.evaluation.judging.rates import require_judge

        require_judge(config.benchmarks.judge)


def _parse(job_name: str) -> tuple[Config, str | None]:
    parser = Parser(prog=f"jobs/{job_name}.py", description="See README.md for the flow of the jobs.")
    parser.add_argument("--config", required=True, metavar="FILE", help="a YAML file, such as configs/demo.yaml")
    parser.add_argument(
        "--redo",
        metavar="STAGE",
        choices=[stage.name for stage in STAGES],
        help="delete this stage's artifact and all that was made from it, then go on",
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="change a setting of the file")
    arguments = parser.parse_args()
    set_up_logging()
    config = with_absolute_folders(load_config(arguments.config, arguments.overrides))
    refuse_missing_library(config.tracking)
    return config, arguments.redo


def with_absolute_folders(config: Config) -> Config:
    """The same with absolute paths for the artifacts, and for TensorBoard's files.

    Raises:
        SbpError: one is relative in a submitted job.
    """
    given = {noun: _absolute(url, f"artifacts.{noun}") for noun, url in config.artifacts.items()}
    tracking = config.tracking
    if tracking.tensorboard is not None:
        folder = _absolute(tracking.tensorboard, "tracking.tensorboard")
        tracking = tracking.model_copy(update={"tensorboard": folder})
    run_dir = _absolute(config.run_dir, "run_dir")
    return config.model_copy(update={"run_dir": run_dir, "artifacts": given, "tracking": tracking})


def _absolute(url: str, key: str) -> str:
    if "://" in url or Path(url).is_absolute():
        return url
    if "RAY_ADDRESS" in os.environ:
        raise SbpError(
            f"{key}={url!r} is relative, and a submitted job runs in a throw-away copy of the folder: "
            "give an absolute path that all nodes share, or s3://, gs://"
        )
    return str(Path(url).resolve())


def _arm_fits(stage: Stage, config: Config) -> bool:
    return not stage.overrides or f"pretrain.arm={config.pretrain.arm}" in stage.overrides


def artifact(config: Config, name: str) -> Artifact:
    """The artifact `name` of the run, complete or not: under `run_dir`, or where `artifacts` says."""
    given: Mapping[str, str] = config.artifacts
    return Artifact(name, given.get(name, f"{config.run_dir.rstrip('/')}/{FOLDERS[name]}").rstrip("/"))


def is_ours(config: Config, name: str) -> bool:
    """Whether the run makes the artifact: then it may be written and deleted.

    One that `artifacts` names is another's, unless the run directory is its folder: a run that makes nothing else.
    """
    return name not in config.artifacts or artifact(config, name).url == config.run_dir.rstrip("/")


# What an artifact is made from

_NOT_IN_RECIPE = ("resources", "max_bad_share")  # how fast a stage works and when it stops, not what it makes


def recipe(stage: Stage, config: Config, made_from: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Settings and inputs that decide the stage's result: equal recipes make equal artifacts.

    Args:
        made_from: the inputs' fingerprints by noun; without them they are read from the artifacts.
    """
    settings = config.model_dump(mode="json")
    if stage.job == "pretrain":
        settings["pretrain"]["arm"] = "sbp" if stage.writes == "lm" else "repetition"
    chosen = {section: _that_decide(settings[section]) for section in stage.sections}
    known = made_from or {}
    inputs = {name: known.get(name) or _fingerprint_if_started(artifact(config, name)) for name in stage.reads}
    made = artifact(config, stage.writes)
    if stage.job == "ingest" and not any(pattern.startswith(HUGGING_FACE) for pattern in config.ingest.input):
        inputs["files"] = _fingerprint_of_files(made, lambda: list_input_files(config.ingest.input))
    if "decontaminate" in stage.sections and config.decontaminate.evaluation_sets:
        inputs["evaluation sets"] = _fingerprint_of_files(made, lambda: list_evaluation_files(config.decontaminate))
    return {"settings": chosen, "inputs": inputs}


def _fingerprint_of_files(made: Artifact, files: Callable[[], list[tuple[str, int]]]) -> str | None:
    """Names and sizes of the files; None when the artifact is finished and they have gone."""
    try:
        found = files()
    except SbpError:
        if made.exists(MANIFEST):
            return None
        raise
    return fingerprint_of({str(number): [Path(path).name, size] for number, (path, size) in enumerate(found)})


def _that_decide(section: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in section.items() if key not in _NOT_IN_RECIPE}


def _fingerprint_if_started(made: Artifact) -> str | None:
    return made.fingerprint() if made.exists(STARTED) else None


def _is_done(stage: Stage, config: Config) -> bool:
    """Whether the artifact is complete; refuses one that was made, or begun, from something else."""
    output = artifact(config, stage.writes)
    made_from = recipe(stage, config)  # first of all: it is here that missing input files are noticed
    if not is_ours(config, stage.writes):
        _require_given(stage, config, made_from)
        return True
    if not output.exists(STARTED):
        return False
    changes = list(_changes(output.read_json(STARTED)["recipe"], made_from))
    if changes:
        raise SbpError(f"{output.url} was made with {'; '.join(changes)}: use a new run_dir, or --redo {stage.name}")
    return output.exists(MANIFEST)


def _require_given(stage: Stage, config: Config, made_from: dict[str, Any]) -> None:
    """Refuse a given artifact that is not finished, or does not go with the others.

    One that another stage made stands in for it (a base LM for the synthesizer, say): then only its inputs count.
    """
    given = artifact(config, stage.writes)
    where = f"artifacts.{stage.writes}={given.url}"
    if not given.exists(MANIFEST):
        raise SbpError(f"{where} is given, and not finished: finish it in its own run, or take it out")
    old = given.read_json(STARTED)["recipe"]
    if old["settings"].keys() != made_from["settings"].keys():
        shared = old["inputs"].keys() & made_from["inputs"].keys()
        old, made_from = ({"inputs": {name: r["inputs"][name] for name in shared}} for r in (old, made_from))
    if changes := list(_changes(old, made_from)):
        raise SbpError(f"{where} was made with {'; '.join(changes)}: make them equal, or take it out")


def _changes(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key in sorted(old.keys() | new.keys()):
        before, now = old.get(key), new.get(key)
        name = key if prefix in ("", "settings.", "inputs.") else f"{prefix.removeprefix('settings.')}{key}"
        if isinstance(before, dict) and isinstance(now, dict):
            yield from _changes(before, now, f"{prefix}{key}.")
        elif prefix != "inputs." and before != now:
            yield f"{name}={before}, which is {now} now"
        elif None not in (before, now) and before != now:
            yield f"other {'input files' if name == 'files' else name} ({before} then, {now} now)"


def _require_inputs(stage: Stage, config: Config) -> None:
    for name in stage.reads:
        if not artifact(config, name).exists(MANIFEST):
            if not is_ours(config, name):
                raise SbpError(f"artifacts.{name}={artifact(config, name).url}: no finished artifact lies there")
            [maker] = [s for s in STAGES if s.writes == name]
            how = f"run jobs/{maker.job}.py first" + (f" with {maker.overrides[0]}" if maker.overrides else "")
            raise SbpError(f"{artifact(config, name).url} is not there yet: {how}")


def _redo(config: Config, name: str | None) -> None:
    """Delete the stage's artifact and, since they were made from it, all that follow from it."""
    if name is None:
        return
    stale = {stage.writes for stage in STAGES if stage.name == name}
    for stage in STAGES:
        if stage.name == name and not is_ours(config, stage.writes):
            raise SbpError(
                f"artifacts.{stage.writes}={artifact(config, stage.writes).url} belongs to another run, and nothing is "
                f"deleted there: use --redo {name} in its own run"
            )
        if stale & {*stage.reads, stage.writes} and is_ours(config, stage.writes):
            stale.add(stage.writes)
            artifact(config, stage.writes).remove()
            logger.info(f"{stage.name} | {artifact(config, stage.writes).url} removed")


def _execute(stage: Stage, config: Config, run: RunStage) -> None:
    """Run one stage and commit its manifest, the last file that it writes."""
    from sbp_ray.cluster import MemoryMeter

    _require_inputs(stage, config)
    output = artifact(config, stage.writes)
    made_from = recipe(stage, config)
    if not output.exists(STARTED):
        started = {"fingerprint": fingerprint_of(made_from), "recipe": made_from, "started_at": _now()}
        output.write_json(STARTED, started)
    output.remove_unfinished()  # of attempts that were killed
    for override in stage.overrides:
        key, _, value = override.removeprefix("pretrain.").partition("=")
        config = config.model_copy(update={"pretrain": config.pretrain.model_copy(update={key: value})})
    start = time.monotonic()
    tracking = config.tracking if stage.job in _TRAINS else TrackingConfig()
    with MemoryMeter() as memory, tracked(tracking, output, METRICS):
        stats = run(Job(stage, config, {name: artifact(config, name) for name in stage.reads}, output))
    wall_s = time.monotonic() - start
    output.remove_unfinished()  # of workers that were killed in this one
    output.write_json(
        MANIFEST,
        {
            "artifact": stage.writes,
            "stage": stage.name,
            "fingerprint": fingerprint_of(made_from),
            **made_from,
            "stats": stats,
            "wall_s": round(wall_s, 1),
            "peak_mem_gib": round(memory.peak_gib, 2),
            "finished_at": _now(),
            "sbp_ray": __version__,
            "made_by": provenance(),
        },
    )
    logger.info(f"{stage.name} | done in {duration(wall_s)} | peak {memory.peak_gib:.1f} GiB | {output.url}")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


# One writer for each run directory


@contextmanager
def locked(run_dir: str) -> Iterator[None]:
    """Hold the run directory. The lock is the kernel's and goes with the process, however it ends."""
    if "://" in run_dir:  # object stores have no locks: the cluster keeps one, see sbp_ray.cluster
        yield
        return
    import fcntl

    try:
        Path(run_dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SbpError(f"run_dir={run_dir}: cannot be made: {error.strerror}: choose another") from None
    with open(Path(run_dir) / "run.lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise SbpError(
                f"{run_dir} is in use by process {owner}: wait for it to end, or take another run_dir"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
