"""The nightly thresholds: what falls below is named, and so is what was not measured."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_what_falls_below_its_least_and_what_is_missing_are_not_met() -> None:
    from gates import compare, read_comparisons

    line = {"case": "one rank of 8", "metric": "rows read", "peer_name": "lists", "ratio": 2.5}
    output = f"some text\n{json.dumps(line)}\n{json.dumps(line | {'case': 'one rank of 64', 'ratio': 7})}\n"
    ratios = read_comparisons(output + json.dumps({"case": "without a peer"}))
    found = list(compare({r"rank of \d+ ": 3, "rank of 64": 7, "rank of 512": 1}, ratios))
    assert found == [
        (False, "NOT MET | one rank of 8 | rows read | lists | 2.5, at least 3"),
        (True, "met | one rank of 64 | rows read | lists | 7, at least 3"),
        (True, "met | one rank of 64 | rows read | lists | 7, at least 7"),
        (False, "rank of 512: no comparison of this name was made"),
    ]


def test_every_gate_runs_a_benchmark_that_is_there_and_can_be_read() -> None:
    from gates import load_gates

    for gate in load_gates([]):
        assert (BENCHMARKS / gate["run"][0]).is_file()
        assert gate["least"]
        for pattern, least in gate["least"].items():
            re.compile(pattern)
            assert least > 0
    assert [gate["run"][0] for gate in load_gates(["rows"])] == ["rows.py"]


def test_a_benchmark_without_a_gate_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from gates import main

    monkeypatch.setattr(sys, "argv", ["gates.py", "nothing"])
    with pytest.raises(SystemExit, match=r"gates\.yaml has no nothing\.py"):
        main()
