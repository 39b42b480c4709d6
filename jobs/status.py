"""run directory -> a table on the terminal: what is done, running or stale, how far, what was dropped, what it cost

python jobs/status.py --config configs/demo.yaml [section.key=value …]
python jobs/status.py run_dir=s3://bucket/run
"""

from sbp_ray.cli import Parser, exit_with
from sbp_ray.errors import SbpError


def _run() -> None:
    parser = Parser(prog="jobs/status.py", description="Without Ray, from the run directory alone.")
    parser.add_argument("--config", metavar="FILE", help="that of the run; without it, run_dir=… alone")
    parser.add_argument("--dollars-per-hour", type=float, default=0.0, metavar="N", help="what the cluster costs")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="as the run had them")
    arguments = parser.parse_args()
    from datetime import UTC, datetime
    from pathlib import Path

    from sbp_ray.cli import with_absolute_folders
    from sbp_ray.config_file import load_config
    from sbp_ray.report.wording import aligned
    from sbp_ray.run_status import COLUMNS, status_rows

    config = None
    if arguments.config:
        config = with_absolute_folders(load_config(arguments.config, arguments.overrides))
        run_dir = config.run_dir
    elif len(arguments.overrides) == 1 and arguments.overrides[0].startswith("run_dir="):
        run_dir = arguments.overrides[0].removeprefix("run_dir=").rstrip("/")
        run_dir = run_dir if "://" in run_dir else str(Path(run_dir).resolve())
    else:
        raise SbpError("a run is named by --config FILE, or by run_dir=FOLDER alone: see python jobs/status.py --help")
    rows = status_rows(run_dir, config, arguments.dollars_per_hour, datetime.now(UTC))
    print("\n".join(aligned([COLUMNS, *rows])))


if __name__ == "__main__":
    exit_with(_run)
