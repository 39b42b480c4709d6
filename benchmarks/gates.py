"""Run the benchmarks of gates.yaml and compare their ratios with the least that it allows. For every night.

    python benchmarks/gates.py               # all, an hour or so on two cores
    python benchmarks/gates.py rows embed    # some
    python benchmarks/gates.py --print       # what would be run

Prints a line for each comparison, and ends with status 1 where one is below its least, or has not been made.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent


def main() -> None:
    """Run and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="BENCHMARK", help="such as rows; all where none is named")
    parser.add_argument("--print", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    gates = load_gates(arguments.names)
    failed: list[str] = []
    for gate in gates:
        print(" ".join(["python", f"benchmarks/{gate['run'][0]}", *gate["run"][1:]]), flush=True)
        if not arguments.print:
            command = [sys.executable, str(HERE / gate["run"][0]), *gate["run"][1:]]
            ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603  our own
            if ended.returncode:
                failed.append(f"{gate['run'][0]} ended with status {ended.returncode}")
            for is_met, line in compare(gate["least"], read_comparisons(ended.stdout)):
                print(f"  {line}", flush=True)
                if not is_met:
                    failed.append(line)
    if failed:
        sys.exit("\n".join(["below their least, or not made:", *failed]))


def load_gates(names: Iterable[str]) -> list[dict[str, Any]]:
    """Those that are named, else all."""
    gates = yaml.safe_load((HERE / "gates.yaml").read_text(encoding="utf-8"))
    wanted = {f"{name}.py" for name in names} or {gate["run"][0] for gate in gates}
    if unknown := wanted - {gate["run"][0] for gate in gates}:
        sys.exit(f"gates.yaml has no {', '.join(sorted(unknown))}")
    return [gate for gate in gates if gate["run"][0] in wanted]


def read_comparisons(output: str) -> dict[str, float]:
    """Ratios that a benchmark printed, by `case | metric | peer`."""
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    return {
        f"{line['case']} | {line['metric']} | {line['peer_name']}": line["ratio"] for line in lines if "ratio" in line
    }


def compare(least: Mapping[str, float], ratios: Mapping[str, float]) -> Iterator[tuple[bool, str]]:
    """Whether each comparison meets its least, and what to say of it."""
    for pattern, lowest in least.items():
        found = {name: ratio for name, ratio in ratios.items() if re.search(pattern, name)}
        if not found:
            yield False, f"{pattern}: no comparison of this name was made"
        for name, ratio in found.items():
            is_met = ratio >= lowest
            yield is_met, f"{'met' if is_met else 'NOT MET'} | {name} | {ratio:g}, at least {lowest:g}"


if __name__ == "__main__":
    main()
