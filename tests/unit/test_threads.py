"""Work that threads do ahead of its use."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from sbp_ray.errors import SbpError
from sbp_ray.threads import map_in_threads, read_ahead


def marking(made: list[threading.Event]) -> Iterator[int]:
    for number, event in enumerate(made):
        event.set()
        yield number


def test_the_next_item_is_made_while_one_is_used() -> None:
    made = [threading.Event() for _ in range(4)]
    ahead = read_ahead(marking(made))
    assert next(ahead) == 0
    assert made[1].wait(240)
    assert not made[2].is_set()  # and no more than one
    assert list(ahead) == [1, 2, 3]


def test_an_error_while_making_the_next_item_is_raised() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise SbpError("unreadable")

    ahead = read_ahead(items())
    assert next(ahead) == 1
    with pytest.raises(SbpError, match="unreadable"):
        next(ahead)


def test_as_many_items_are_made_ahead_as_asked_for_and_none_once_it_is_closed() -> None:
    made = [threading.Event() for _ in range(9)]
    ahead = read_ahead(marking(made), depth=3)
    assert next(ahead) == 0
    assert made[3].wait(240)
    ahead.close()  # waits for what was begun
    assert not made[4].is_set()


def test_no_items_are_no_items() -> None:
    assert list(read_ahead(iter(()), depth=2)) == []
    assert list(map_in_threads(str, [])) == []


def test_results_keep_the_order_of_the_items_and_few_wait_to_be_taken() -> None:
    begun: list[int] = []

    def double(number: int) -> int:
        begun.append(number)
        return 2 * number

    results = map_in_threads(double, range(100), num_threads=4)
    assert next(results) == 0
    assert len(begun) <= 5
    assert list(results) == list(range(2, 200, 2))
