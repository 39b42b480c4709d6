"""The progress line says how far, how fast and how long, and not too often."""

import logging
from collections.abc import Iterator

import pytest

from sbp_ray.logs import Progress, duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.4, "0s"), (59.4, "59s"), (59.5, "1m00s"), (190, "3m10s"), (3599.6, "1h00m"), (7500, "2h05m")],
)
def test_durations_read_like_a_clock(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What `sbp_ray.logs` logs, as it comes."""
    seen: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record.getMessage())

    logger = logging.getLogger("sbp_ray.logs")
    handler, level = Keep(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield seen
    logger.removeHandler(handler)
    logger.setLevel(level)


def test_a_line_holds_count_share_rate_and_time_left(lines: list[str], clock: list[float]) -> None:
    progress = Progress("embed", 8, "shards")
    clock[0] += 4
    progress.advance(2)  # 2 in 4 s: 0.5 a second, 6 to go: 12 s
    assert lines == ["embed | 2/8 shards (25%) | 0.5 shards/s | eta 12s"]


def test_what_an_earlier_run_did_counts_as_done_but_not_as_speed(lines: list[str], clock: list[float]) -> None:
    progress = Progress("embed", 8, "shards", done=4)
    clock[0] += 4
    progress.advance(2, note="slow")
    assert lines == ["embed | 6/8 shards (75%) | 0.5 shards/s | eta 4s | slow"]


def test_lines_come_no_closer_than_asked_but_the_last_one_always_comes(lines: list[str], clock: list[float]) -> None:
    progress = Progress("pair", 10, "shards", every_s=5)
    for _ in range(10):
        clock[0] += 1
        progress.advance()
    assert [line.split(" ")[2] for line in lines] == ["1/10", "6/10", "10/10"]
    assert lines[-1].endswith("eta 0s")


def test_work_without_units_is_done(lines: list[str], clock: list[float]) -> None:
    Progress("pair", 0, "shards").advance(0)
    assert lines == ["pair | 0/0 shards (100%) | 0.0 shards/s | eta unknown"]
