"""All-pairs k-NN graphs: ours beside ScaNN, FAISS IVF-Flat, FAISS HNSW and pynndescent, at equal recall.

    python benchmarks/neighbors.py                                  every set, every peer: hours on 2 cores
    python benchmarks/neighbors.py --quick                          small sets, minutes
    python benchmarks/neighbors.py --cases clustered-100000 --peers scann,faiss-hnsw --rounds 3
    python benchmarks/neighbors.py --rounds 0                       report what earlier runs measured
    python benchmarks/neighbors.py --cases glove --tune             search the peers' settings again

Every vector's 10 nearest others by cosine, with recall@10 of at least 0.95 on the same 1,000 queries for all. Every
graph is made in a fresh process on the same CPUs, methods in turn; a figure is the median of its rounds. Time is that
of building and searching together. Peers are given the vectors in memory and run with the settings in
neighbors_tuned.json, the fastest found that reach the recall; pynndescent's compilation is left out. Ours reads files,
writes files and certifies its recall within its time; Ray's start is left out. Memory is the most that the process and
its children held at once (shared pages once; a peer's exact high-water mark), vectors, libraries and Ray included.

Measurements are appended to --results, so that cases may be run on different days. One line of JSON for each case and
peer comes last on stdout; the table goes to stderr. Install the peers with requirements/bench.txt.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from harness import PeakMemory, hardware
from neighbor_methods import OURS, PEERS, Params
from neighbor_report import MIN_RECALL, Measurement, report
from neighbor_tuning import recall_at_k
from vector_sets import UnavailableError, default_cache, exact_neighbors, query_rows, vector_file

K = 10
CASES = ("demo", "glove", "clustered-100000", "clustered-300000", "clustered-1000000")
QUICK_CASES = ("demo", "glove-20000", "clustered-20000")
TUNED = Path(__file__).with_name("neighbors_tuned.json")
RESULTS = Path(__file__).parents[1] / "runs" / "benchmarks" / "neighbors.jsonl"


def main() -> None:
    """Run what the command line asks for, and report."""
    options = _options()
    os.sched_setaffinity(0, options.cpus)
    threads = str(len(options.cpus))
    pools = ("OMP", "OPENBLAS", "MKL", "NUMBA")
    os.environ.update({f"{pool}_NUM_THREADS": threads for pool in pools})
    for case in options.cases:
        try:
            run = Case(case, vector_file(case, options.cache, options.data), len(options.cpus))
        except UnavailableError as error:
            _say(f"left out: {error}")
            continue
        methods = [method for method in options.methods if _is_installed(method)]
        if options.tune:
            for method in methods:
                run.tune(method, options.tune_s)
            continue
        for number in range(options.rounds):
            for method in methods:
                try:
                    measured = run.measure(method)
                except FailedError as error:
                    _say(f"error: {error}")
                    continue
                times = f"{measured['seconds']:.1f} s, {measured['cpu_s']:.1f} s of CPU"
                figures = f"{times}, recall {measured['recall']:.4f}, {measured['peak_gib']:.2f} GiB"
                _say(f"{case} | round {number + 1} of {options.rounds} | {method} | {figures}")
                options.results.parent.mkdir(parents=True, exist_ok=True)
                with options.results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(measured) + "\n")
    if not options.tune:
        report(_read_results(options.results), options.cases, options.methods)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK_CASES)}, one round")
    parser.add_argument("--cases", type=_names, help="see vector_sets.py for what there is")
    parser.add_argument("--peers", type=_names, default=list(PEERS), help=f"of {', '.join(PEERS)}; '' for none")
    parser.add_argument("--without-ours", action="store_true", help="peers alone")
    parser.add_argument("--rounds", type=int, help="of each method, in turn (3); 0 reports earlier ones")
    parser.add_argument("--cpus", type=_cpus, help="to run on, such as 2,3 (the first two allowed)")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder that keeps the vectors")
    parser.add_argument("--data", type=Path, help="folder with SQuAD's docs.jsonl.gz, for the case `squad`")
    parser.add_argument("--results", type=Path, help=f"measurements are appended to it ({RESULTS})")
    parser.add_argument("--tune", action="store_true", help="search the peers' settings and keep them")
    parser.add_argument("--tune-s", type=float, default=1800, help="seconds after which --tune begins no other build")
    options = parser.parse_args()
    options.cases = options.cases or list(QUICK_CASES if options.quick else CASES)
    options.rounds = options.rounds if options.rounds is not None else (1 if options.quick else 3)
    options.results = options.results or (RESULTS.with_stem("neighbors-quick") if options.quick else RESULTS)
    options.cpus = options.cpus or sorted(os.sched_getaffinity(0))[:2]
    ours = [] if options.without_ours or options.tune else [OURS]
    unknown = set(options.peers) - set(PEERS)
    if unknown:
        parser.error(f"no such peer: {', '.join(unknown)}; there are {', '.join(PEERS)}")
    options.methods = ours + options.peers
    return options


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _cpus(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _is_installed(method: str) -> bool:
    if method == OURS or importlib.util.find_spec(PEERS[method].module):
        return True
    _say(f"left out: {method}: pip install {PEERS[method].package}, or all of requirements/bench.txt")
    return False


class FailedError(Exception):
    """A process of a measurement ended without an answer."""


def _code() -> str:
    """Names what the search is made of: another version is another method."""
    source = Path(__file__).parents[1] / "sbp_ray"
    files = [*sorted((source / "neighbors").glob("*.py")), source / "stages/neighbors.py"]
    files += [source / "shards.py", source / "steps.py"]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:8]


class Case:
    """One set of vectors, and the truth about a sample of it."""

    def __init__(self, name: str, vectors: Path, threads: int) -> None:
        self.name, self._path, self._threads = name, vectors, threads
        self._vectors_ND = np.load(vectors, mmap_mode="r")
        self.num = len(self._vectors_ND)
        self._query_Q = query_rows(self.num)
        self._exact_QK: np.ndarray | None = None

    def measure(self, method: str) -> Measurement:
        """Make one graph."""
        params = {"code": _code()} if method == OURS else tuned_params(method, self.name, self.num)
        with tempfile.TemporaryDirectory() as folder:
            found = f"{folder}/found.npy"
            answer = self._ask("measure", folder, method=method, params=params, found=found, min_recall=MIN_RECALL)
            found_QK = np.load(found)
        if self._exact_QK is None:
            self._exact_QK = exact_neighbors(self._vectors_ND, self._query_Q, K)[1]
        recall = recall_at_k(self._vectors_ND, self._query_Q, found_QK, self._exact_QK)
        about = {"case": self.name, "method": method, "num": self.num, "dim": self._vectors_ND.shape[1]}
        return about | {"hardware": hardware(), "time": time.time(), "params": params, "recall": recall} | answer

    def tune(self, method: str, budget_s: float) -> None:
        """Search a peer's settings, around those for the next smaller set of its family where there are any."""
        table = json.loads(TUNED.read_text()) if TUNED.exists() else {}
        sizes = [entry for entry in _family(table.get(method, {}), self.name) if self.num / 10 < entry[0] < self.num]
        size, settings = max(sizes, key=lambda entry: entry[0], default=(0, None))
        near = (settings, self.num / size) if size else None
        with tempfile.TemporaryDirectory() as folder:
            best = self._ask("tune", folder, method=method, near=near, min_recall=MIN_RECALL, budget_s=budget_s)["best"]
        if best is None:
            _say(f"{self.name} {method}: nothing reached recall {MIN_RECALL}")
            return
        table.setdefault(method, {})[self.name] = {"num": self.num, "params": best}
        temporary = TUNED.with_suffix(f".tmp-{os.getpid()}")
        temporary.write_text(json.dumps(table, indent=1) + "\n")
        temporary.replace(TUNED)

    def _ask(self, action: str, folder: str, **request: Any) -> dict[str, Any]:
        """Have neighbor_process.py do something; the answer, and the most memory held until it came."""
        queries = f"{folder}/queries.npy"
        np.save(queries, self._query_Q)
        request |= {"vectors": str(self._path), "queries": queries, "k": K, "threads": self._threads}
        script = Path(__file__).with_name("neighbor_process.py")
        command = [sys.executable, str(script), action, json.dumps(request)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603
        assert process.stdout is not None
        # Looked at from outside, since a library that keeps Python's lock would stop a thread of its own process.
        with PeakMemory(process.pid) as memory:
            answer = next((json.loads(line) for line in process.stdout if line.startswith("{")), None)
        process.communicate()
        if process.returncode or answer is None:
            raise FailedError(f"{request['method']} failed on {self.name} with status {process.returncode}")
        peak_gib = max(memory.peak_gib, answer.get("own_peak_gib", 0.0))
        return answer | {"peak_gib": peak_gib}


def tuned_params(method: str, case: str, num: int) -> Params:
    """The settings kept for a case, or else those for the set of its family that is nearest in size.

    Raises:
        FailedError: there are none.
    """
    entries = list(_family(json.loads(TUNED.read_text()).get(method, {}), case))
    if not entries:
        raise FailedError(f"{method} has no settings for sets like {case}: run with --cases {case} --tune first")
    return min(entries, key=lambda entry: abs(np.log(entry[0] / num)))[1]


def _family(table: dict[str, Any], case: str) -> Iterator[tuple[int, Params]]:
    """Sizes and settings of a peer's cases that are like `case`; vectors of sentences are all alike."""
    is_glove = case.startswith("glove")
    for name, entry in table.items():
        if name.startswith("glove") == is_glove:
            yield entry["num"], entry["params"]


def _read_results(path: Path) -> list[Measurement]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
