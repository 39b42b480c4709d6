from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def harness() -> ModuleType:
    """Loaded from its file: benchmarks/ is a folder of scripts."""
    spec = importlib.util.spec_from_file_location("harness", ROOT / "benchmarks/harness.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_cases_take_turns(harness: ModuleType) -> None:
    ran: list[str] = []

    def case(name: str, value: float):
        return lambda: ran.append(name) or value + len(ran)

    measured = harness.alternate({"a": case("a", 0.0), "b": case("b", 10.0)}, rounds=2)
    assert ran == ["a", "b", "a", "b"]
    assert measured == {"a": [1.0, 3.0], "b": [12.0, 14.0]}


@pytest.mark.parametrize(("higher_is_better", "ratio"), [(True, 3.0), (False, 0.3333)])
def test_a_ratio_above_one_means_that_ours_is_better(
    harness: ModuleType, capsys: pytest.CaptureFixture[str], higher_is_better: bool, ratio: float
) -> None:
    harness.emit("b", "c", "speed", "documents/s", 30.0, "peer", 10.0, higher_is_better=higher_is_better)
    line = json.loads(capsys.readouterr().out)
    assert line.pop("hardware") == harness.hardware()
    assert line == {
        "benchmark": "b",
        "case": "c",
        "metric": "speed",
        "unit": "documents/s",
        "ours": 30.0,
        "peer_name": "peer",
        "peer": 10.0,
        "ratio": ratio,
    }


def test_peak_memory_is_seen_while_it_is_held(harness: ModuleType) -> None:
    with harness.PeakMemory() as memory:
        held = bytearray(300 << 20)
        held[::4096] = b"x" * len(held[::4096])
        while memory.peak_gib < len(held) / 2**30:  # a later sample sees it, or the test times out
            pass
