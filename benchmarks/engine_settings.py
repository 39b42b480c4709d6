"""What single settings of a CPU engine give: tokens a second of one bare engine after another, one setting changed.

    python benchmarks/engine_settings.py     # six minutes on two cores

Model, prompts, lengths and draws are those of synthesis.py. The first engine comes last again, which tells how far the
machine is to be trusted. Each has a process of its own: OpenMP keeps the threads that it began with.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import hardware
from synthesis_work import CORES, bare_engine, bare_rate, prepare, settle, work_in

from sbp_ray.engine import deploy, seeded

NUM_DOCUMENTS = 128
ROUNDS = 3
OUR_SEEDS = {"change": seeded.sample_here, "logits_processors": [deploy.SAMPLER]}
SETTINGS: dict[str, dict[str, Any]] = {
    "base": {},
    "our seeds": OUR_SEEDS,
    "1 thread": {"threads": 1},
    "1 thread, our seeds": {"threads": 1} | OUR_SEEDS,
    "compiled": {"enforce_eager": False},
    "32 sequences": {"max_num_seqs": 32},
    "128 sequences": {"max_num_seqs": 128},
    "block_size 128": {"block_size": 128},
    "prefix cache": {"enable_prefix_caching": True},
    "bfloat16": {"dtype": "bfloat16"},
    "top_p 0.9": {"change": lambda parameters: setattr(parameters, "top_p", 0.9)},
    "no seeds": {"change": lambda parameters: setattr(parameters, "seed", None)},
    "base, again": {},
}


def main() -> None:
    """See the file's docstring."""
    parser = argparse.ArgumentParser(description="Prints one line of JSON for each setting.")
    parser.add_argument("--only", nargs=2, metavar=("SETTING", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        measure(*arguments.only)
        return
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), NUM_DOCUMENTS)
        for name, changed in SETTINGS.items():
            environment = os.environ | {"OMP_NUM_THREADS": str(changed.get("threads", CORES))}  # read on import
            command = [sys.executable, __file__, "--only", name, folder]
            subprocess.run(command, env=environment, check=True)  # noqa: S603  ourselves


def measure(name: str, folder: str) -> None:
    """The best of some rounds, after one that warms."""
    changed = dict(SETTINGS[name])
    settle(changed.pop("threads", CORES))
    change = {"change": changed.pop("change")} if "change" in changed else {}
    work = work_in(Path(folder))
    start = time.monotonic()
    engine = bare_engine(work, **changed)
    started_s = time.monotonic() - start
    rates = [bare_rate(work, engine, **change) for _ in range(ROUNDS + 1)]
    line = {"setting": name, "tokens_per_s": round(max(rates[1:]), 1), "start_s": round(started_s, 1)}
    print(json.dumps(line | {"hardware": hardware()}), flush=True)


if __name__ == "__main__":
    main()
