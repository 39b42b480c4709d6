"""Real gloo ranks as forked processes: seconds to start, where spawned ones import everything again."""

from __future__ import annotations

import gc
import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any


def run_ranks(num_ranks: int, folder: Path, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """`function(*arguments)` in each rank of a new gloo group; the ranks' results, which must pickle; None of one that
    was killed.

    They meet through a file: no port. The group of a test is its own folder's.
    """
    results = []
    started = _start(num_ranks, folder, function, arguments)
    for process, ours in started:
        try:
            results.append(ours.recv())
        except EOFError:  # it was killed
            results.append(None)
        process.join()
    failed = [result for result in results if isinstance(result, _Failure)]
    assert not failed, failed[0].text
    return results


def start_ranks(num_ranks: int, folder: Path, function: Callable[..., Any]) -> list[BaseProcess]:
    """The same without waiting for them: to be killed."""
    return [process for process, _ in _start(num_ranks, folder, function, ())]


def _start(
    num_ranks: int, folder: Path, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> list[tuple[BaseProcess, Connection]]:
    context = multiprocessing.get_context("fork")
    store = folder / f"store-{len(list(folder.glob('store-*')))}"
    store.touch()  # taken
    ranks: list[tuple[BaseProcess, Connection]] = []
    for rank in range(num_ranks):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_rank, args=(rank, num_ranks, store, theirs, function, arguments))
        process.start()
        theirs.close()
        ranks.append((process, ours))
    return ranks


class _Failure:
    def __init__(self, text: str) -> None:
        self.text = text


def _rank(
    rank: int, num_ranks: int, store: Path, pipe: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    import torch
    import torch.distributed as dist

    # What the parent has left, a process group with threads among it, is not this process's to take away.
    gc.freeze()
    torch.set_num_threads(1)  # also: the parent's OpenMP threads do not survive a fork
    try:
        dist.init_process_group("gloo", store=dist.FileStore(str(store), num_ranks), rank=rank, world_size=num_ranks)
        pipe.send(function(*arguments))
        dist.destroy_process_group()
    except BaseException:  # noqa: BLE001  # it is raised again in the test
        pipe.send(_Failure(f"rank {rank}: {traceback.format_exc()}"))
