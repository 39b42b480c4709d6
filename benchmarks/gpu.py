"""Is it right on a GPU, and how fast? Cases in pieces of some minutes, on a machine that may have little else.

    make gpu                                             # all pieces, where the project is installed
    python benchmarks/gpu.py --piece correct --out DIR   # on a bare machine: torch, transformers, numpy, pydantic

    facts    versions, products and copies a second
    correct  asserts: attention, loss, gradients, compiling, resuming, exports, scores, the embedder, the search, memory
    train    tokens/s, MFU and memory of a step at 0.1 to 3 B parameters, beside loops as others write them
    data     embedding beside SentenceTransformer.encode, scoring, brute-force search
    engine   vLLM, where it is installed: an engine's start, tokens/s, and whether a seed's text is its own
    nano     the comparison of arms in small, from rows packed beforehand (`gpu_nano.py`)

Each case runs in a process of its own, with a limit. Its result is a line of JSON in DIR/results.jsonl; a case that has
ended well there is not run again, so a piece that ran out of time goes on where it was. The last thing printed is a
table. With `--device cpu` all cases run at a tiny size, which tests them and measures nothing.

Nothing is installed or fetched, and neither Ray, vLLM nor pyarrow is imported. What is missing besides is named in the
case that is skipped for it. The assertions are those of `pytest -m gpu`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # where nothing is installed

import gpu_correct
import gpu_data
import gpu_engine
import gpu_nano
import gpu_train
import gpu_whole
import torch
from gpu_setting import Setting, Skip, make_setting

Case = Callable[[Setting], dict[str, Any]]
PIECES: dict[str, dict[str, Case]] = {
    "facts": dict(gpu_correct.FACTS),
    "correct": {**gpu_correct.CASES, **gpu_whole.CASES},
    "train": dict(gpu_train.CASES),
    "data": dict(gpu_data.CASES),
    "engine": dict(gpu_engine.CASES),
    "nano": dict(gpu_nano.CASES),
}
_CASE_S = 240.0
"""The most that a case may take."""
_LEAST_S = 20.0
"""With less time than this left no case is begun."""


def main() -> None:
    """See the file's docstring."""
    parser = argparse.ArgumentParser(description="Runs cases on a GPU; see the file's head.")
    parser.add_argument("--piece", choices=[*PIECES, "all"], default="all")
    parser.add_argument("--minutes", type=float, default=8.5, help="for the whole piece")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--case", help="run this one here, and print its line")
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(run_case(arguments.case, arguments.device)))
        return
    wanted = PIECES if arguments.piece == "all" else {arguments.piece: PIECES[arguments.piece]}
    names = [name for cases in wanted.values() for name in cases]
    lines = run_all(names, arguments.device, arguments.out, arguments.minutes * 60)
    print(table(lines))
    sys.exit(any(line["status"] == "failed" for line in lines))


def run_case(name: str, device: str) -> dict[str, Any]:
    """The case's line. What it does not expect ends the process, and the line is the caller's to write."""
    case = next(cases[name] for cases in PIECES.values() if name in cases)
    start = time.monotonic()
    try:
        setting = make_setting(device)
        found, status, reason = case(setting), "ok", ""
    except Skip as skip:
        found, status, reason = {}, "skipped", str(skip)
    hardware = torch.cuda.get_device_name() if device == "cuda" and torch.cuda.is_available() else "cpu"
    spent = {"seconds": round(time.monotonic() - start, 1)}
    return {"case": name, "hardware": hardware, "status": status, "reason": reason, **spent, "found": found}


def run_all(names: list[str], device: str, out: Path, seconds: float) -> list[dict[str, Any]]:
    """The lines of all cases, of which those that ended well before are not run again."""
    out.mkdir(parents=True, exist_ok=True)
    file, end = out / "results.jsonl", time.monotonic() + seconds
    before = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {line["case"]: line for line in before if line["status"] == "ok"}
    lines = []
    for name in names:
        left_s = end - time.monotonic()
        if name in done:
            line = done[name]
        elif left_s < _LEAST_S:
            line = {"case": name, "status": "left", "reason": "no time", "found": {}}
        else:
            print(f"{name} …", file=sys.stderr, flush=True)
            line = _run_in_process(name, device, min(_CASE_S, left_s))
            with file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")
        lines.append(line)
    return lines


def _run_in_process(name: str, device: str, limit_s: float) -> dict[str, Any]:
    command = [sys.executable, __file__, "--case", name, "--device", device]
    failed: dict[str, Any] = {"case": name, "status": "failed", "found": {}}
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)  # noqa: S603  ours
    except subprocess.TimeoutExpired:
        return failed | {"status": "left", "reason": f"not done in {limit_s:.0f} s"}
    if ended.returncode:
        said = [line for line in ended.stderr.splitlines() if line.strip()]
        return failed | {"reason": said[-1][:500] if said else f"status {ended.returncode}", "trace": said[-30:]}
    line: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return line


def table(lines: list[dict[str, Any]]) -> str:
    """One row for each case."""
    width = max(len(line["case"]) for line in lines)
    rows = [
        f"{line['case']:{width}}  {line['status']:8}{line.get('seconds', ''):>7}  {line['reason'] or line['found']}"
        for line in lines
    ]
    hardware = next((line["hardware"] for line in lines if "hardware" in line), "nothing ran")
    return "\n".join([hardware, *rows])


if __name__ == "__main__":
    main()
