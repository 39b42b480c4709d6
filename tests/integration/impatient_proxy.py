"""A proxy as they stand before services: it passes bytes on, and cuts a connection on which nothing comes for long."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ray_head import free_ports


async def _pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter, idle_s: float | None) -> None:
    with suppress(TimeoutError, ConnectionError):
        while piece := await asyncio.wait_for(source.read(65_536), idle_s):
            sink.write(piece)
            await sink.drain()
    sink.close()


@contextmanager
def impatient_proxy(url: str, idle_s: float) -> Iterator[str]:
    """The address of one in front of `url`, for as long as the block."""
    host, port = url.removeprefix("http://").split(":")
    [own] = free_ports(1)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, requests = await asyncio.open_connection(host, int(port))
        await asyncio.gather(_pass_on(reader, requests, None), _pass_on(answers, writer, idle_s))

    loop = asyncio.new_event_loop()
    loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", own))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield f"http://127.0.0.1:{own}"
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
