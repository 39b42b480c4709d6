"""What this machine or cluster does, from trial runs that are finished there: the file for `--plan --rates FILE`.

    python benchmarks/rates.py "configs/demo.yaml run_dir=runs/small" "configs/demo.yaml run_dir=runs/large" > FILE

Each trial is a config and the settings that were changed. A stage takes a time that does not depend on the size, and a
time for each unit of its work: two trials of different sizes tell them apart, more are fitted by least squares. Where
all are of one size the whole time counts as work. The number of pairs is a power of that of documents. Settings under
`resources` must be those of the run that is planned, but for the number of workers.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import yaml

from sbp_ray.artifacts import MANIFEST
from sbp_ray.cli import exit_with
from sbp_ray.config import Config
from sbp_ray.config_file import load_config, read_yaml, settings_of
from sbp_ray.cost_plan import Rates, devices_of, finished_corpus, list_work
from sbp_ray.errors import SbpError
from sbp_ray.job import read_finished_stats
from sbp_ray.nodes import locate
from sbp_ray.stage_table import STAGES

RATES = Path(__file__).parent / "rates.yaml"


def read_trial(config: Config, rates: Rates) -> tuple[dict[str, tuple[float, float]], tuple[float, float]]:
    """Of each stage its work for each of its devices, and its seconds; train documents, and the pairs among them.

    Raises:
        SbpError: the run is not finished.
    """
    finished = read_finished_stats(config)
    made = {stage.name: locate(config, stage.writes) for stage in STAGES}
    if "pairs" not in finished or not all(artifact.exists(MANIFEST) for artifact in made.values()):
        raise SbpError(f"{config.run_dir} is not finished with these settings: run jobs/pipeline.py with them first")
    seconds = {name: artifact.read_json(MANIFEST)["wall_s"] for name, artifact in made.items()}
    corpus = finished_corpus(config, finished, rates)
    taken = {
        work.stage: (work.amount / devices_of(work.job, config)[1], seconds[work.stage])
        for work in list_work(config, corpus, rates)
    }
    return taken, (corpus.train_documents, corpus.pairs)


def fit(points: list[tuple[float, float]]) -> dict[str, float]:
    """A `Trial` of pairs of work and seconds; neither of its numbers is below zero."""
    work_N, seconds_N = np.array(points).T
    slope, start = 0.0, -1.0
    if np.ptp(work_N) > 0:
        slope, start = np.polyfit(work_N, seconds_N, 1)
    if start < 0:
        slope, start = float(work_N @ seconds_N / (work_N @ work_N)), 0.0
    elif slope < 0:
        slope, start = 0.0, float(seconds_N.mean())
    return {"start_s": round(float(start), 2), "device_s": float(f"{slope:.4g}")}


def fit_pairs(points: list[tuple[float, float]]) -> dict[str, float]:
    """A `PairTrial` of documents and pairs: a power law through them, which lists and caps bound where it is used."""
    documents_N, pairs_N = np.array(points).T
    growth = 1.0
    if np.ptp(documents_N) > 0 and (pairs_N > 0).all():
        growth = max(0.0, float(np.polyfit(np.log(documents_N), np.log(pairs_N), 1)[0]))
    most = documents_N.max()
    pairs = pairs_N[documents_N == most].mean()
    return {"documents": float(most), "pairs": float(pairs), "growth": round(growth, 3)}


def main() -> None:
    """Print the rates, with what the trials took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trials", nargs="+", metavar="TRIAL", help='"CONFIG section.key=value …" of a finished run')
    content = read_yaml(str(RATES))
    rates = settings_of(Rates, content, [], where=str(RATES))
    points, pairs = defaultdict(list), []
    for trial in parser.parse_args().trials:
        file, *settings = shlex.split(trial)
        taken, found = read_trial(load_config(file, settings), rates)
        pairs.append(found)
        for stage, point in taken.items():
            points[stage].append(point)
    content["trials"] = {stage: fit(measured) for stage, measured in points.items()}
    content["pairs"] = fit_pairs(pairs)
    yaml.safe_dump(content, sys.stdout, sort_keys=False)


if __name__ == "__main__":
    exit_with(main)
