"""The command line of a job: its settings, its errors in one line, and its exit status."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn

from sbp_ray.config import Config
from sbp_ray.config_file import load_config
from sbp_ray.errors import SbpError, storage_trouble
from sbp_ray.logs import set_up_logging
from sbp_ray.stage_table import STAGES
from sbp_ray.tracking import refuse_missing_library


def exit_with(work: Callable[[], None]) -> NoReturn:
    """Status 0 done, 1 an error the user can fix (one line), 130 interrupted, 70 a bug of ours (with traceback)."""
    try:
        work()
    except SbpError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        is_redo = any(word.startswith("--redo") for word in sys.argv)
        without = " (without --redo, once that has deleted)" if is_redo else ""
        print(f"interrupted: run the same command again{without} to go on from here", file=sys.stderr)
        sys.exit(130)
    except Exception as error:  # noqa: BLE001  only to leave with another status than 1: the user can fix that
        if said := storage_trouble(error):
            print(f"error: {said}", file=sys.stderr)
            sys.exit(1)
        traceback.print_exc()
        sys.exit(70)
    sys.exit(0)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as everything does that the user can fix."""

    def error(self, message: str) -> NoReturn:
        raise SbpError(f"{message}: see python {self.prog} --help")


class Command(NamedTuple):
    """What a command line says."""

    config: Config
    redo: str | None
    """The stage to be redone."""
    plan: argparse.Namespace | None = None
    """`documents`, `tokens` and `rates`, where nothing is to be run but the cost to be told."""


def parse_command(job_name: str) -> Command:
    """
    Raises:
        SbpError: a mistake in it, or in the settings.
    """
    parser = Parser(prog=f"jobs/{job_name}.py", description="See README.md for the flow of the jobs.")
    parser.add_argument("--config", required=True, metavar="FILE", help="a YAML file, such as configs/demo.yaml")
    parser.add_argument(
        "--redo",
        metavar="STAGE",
        choices=[stage.name for stage in STAGES],
        help="delete this stage's artifact and all that was made from it, then go on",
    )
    if job_name == "pipeline":
        parser.add_argument("--plan", action="store_true", help="print what each stage will take and cost; run nothing")
        parser.add_argument("--documents", type=int, help="of the input, for --plan; known where the corpus is done")
        parser.add_argument("--tokens", type=int, help="of the input, likewise")
        parser.add_argument("--rates", default="benchmarks/rates.yaml", metavar="FILE", help="what a machine does")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="change a setting of the file")
    arguments = parser.parse_intermixed_args()
    set_up_logging()
    config = with_absolute_folders(load_config(arguments.config, arguments.overrides))
    refuse_missing_library(config.tracking)
    return Command(config, arguments.redo, arguments if getattr(arguments, "plan", False) else None)


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
