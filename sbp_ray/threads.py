"""Threads for what waits: files read ahead of their use, and many small requests to storage at once."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
Item = TypeVar("Item")

_REQUESTS = 32
"""Requests to storage at once. An object store answers one in some tens of milliseconds."""


def read_ahead(items: Iterable[T], depth: int = 1) -> Iterator[T]:
    """Yield the items while a thread makes the next `depth` of them. What it raises is raised here.

    Close the iterator to stop early.
    """
    end: Any = object()
    source = iter(items)
    pool = ThreadPoolExecutor(1, "read-ahead")
    try:
        waiting: deque[Future[T]] = deque(pool.submit(next, source, end) for _ in range(depth))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(pool.submit(next, source, end))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)


def map_in_threads(function: Callable[[Item], T], items: Iterable[Item], num_threads: int = _REQUESTS) -> Iterator[T]:
    """`function(item)` of each item, in order; at most `num_threads` results wait to be taken."""
    source = iter(items)
    with ThreadPoolExecutor(num_threads, "request") as pool:
        waiting = deque(pool.submit(function, item) for item in itertools.islice(source, num_threads))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(function, item) for item in itertools.islice(source, 1))
            yield result
