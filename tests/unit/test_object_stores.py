"""What is asked of a store again, and what is not."""

from __future__ import annotations

import pytest

from sbp_ray import object_stores
from sbp_ray.object_stores import ask_again

UNREADABLE = "AWS Error INTERNAL_FAILURE during GetObject operation: Failed to flush response stream (eof: 0, bad: 1)"


class Reads:
    """Fails so often, then gives the number of calls."""

    def __init__(self, message: str, times: int) -> None:
        self.message, self.times, self.calls = message, times, 0

    def __call__(self, more: int) -> int:
        self.calls += 1
        if self.calls <= self.times:
            raise OSError(self.message)
        return self.calls + more


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(object_stores.time, "sleep", found.append)
    return found


def test_a_read_whose_error_arrow_had_no_room_for_is_done_again_with_pauses_that_double(pauses: list[float]) -> None:
    assert ask_again(Reads(UNREADABLE, times=3), 100) == 104
    assert pauses == [1, 2, 4]


def test_it_ends_after_half_a_minute_with_the_error(pauses: list[float]) -> None:
    with pytest.raises(OSError, match="Failed to flush"):
        ask_again(Reads(UNREADABLE, times=99), 0)
    assert sum(pauses) == 31


def test_what_a_read_within_has_given_up_on_is_not_asked_for_by_the_one_around_it(pauses: list[float]) -> None:
    within = Reads(UNREADABLE, times=99)
    with pytest.raises(OSError, match="Failed to flush"):
        ask_again(lambda more: ask_again(within, more), 0)
    assert (within.calls, sum(pauses)) == (6, 31)


def test_any_other_error_is_raised_at_once(pauses: list[float]) -> None:
    missing = Reads("Path does not exist", times=1)
    with pytest.raises(OSError, match="does not exist"):
        ask_again(missing, 0)
    assert (missing.calls, pauses) == (1, [])
