"""An S3 server for tests: moto's, a process in the environment of `make clients`, behind a proxy that makes faults.

`fault` is asked about each request, before the server sees it. Requests that fail are counted beside those that pass.
"""

from __future__ import annotations

import http.client
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest
from ray_head import free_ports, wait_for

from sbp_ray import object_stores

PYTHON = Path(__file__).parents[2] / ".venv-clients/bin/python"
HAS_MOTO = "import importlib.util, sys; sys.exit(importlib.util.find_spec('moto') is None)"
BUCKET = "bucket"
ERROR = "<?xml version='1.0' encoding='UTF-8'?><Error><Code>{}</Code><Message>made by a test</Message></Error>"


class Refused(NamedTuple):
    """The server answers with an error of its own."""

    status: int
    code: str


class Cut(NamedTuple):
    """Half of what was asked for comes, and then the connection ends."""


Fault = Refused | Cut | None
SLOW_DOWN, INTERNAL_ERROR = Refused(503, "SlowDown"), Refused(500, "InternalError")
EXPIRED = Refused(400, "ExpiredToken")


class FaultyStore:
    """The proxy's side of the server."""

    def __init__(self, server_port: int, address: str) -> None:
        self.fault: Callable[[int, str, str], Fault] = lambda number, method, path: None
        """Of the number of the request, its method and its path."""
        self.max_keys = 1000
        """In an answer to a listing."""
        self.num_requests = self.num_faults = 0
        self._server_port = server_port
        self._lock = threading.Lock()
        self._proxy = ThreadingHTTPServer((address, 0), self._handler())
        self.url = f"http://{address}:{self._proxy.server_port}"
        threading.Thread(target=self._proxy.serve_forever, daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs in order to find it."""
        names = {"ENDPOINT_URL": self.url, "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "REGION": "us-east-1"}
        return {f"AWS_{name}": value for name, value in names.items()}

    def close(self) -> None:
        self._proxy.shutdown()
        self._proxy.server_close()

    def ask_server(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> http.client.HTTPResponse:
        server = http.client.HTTPConnection("127.0.0.1", self._server_port)
        server.request(method, path, body, headers)
        return server.getresponse()

    def choose_fault(self, method: str, path: str) -> Fault:
        with self._lock:
            self.num_requests += 1
            chosen = self.fault(self.num_requests, method, path)
            self.num_faults += chosen is not None
        return chosen

    def _handler(store) -> type[BaseHTTPRequestHandler]:  # noqa: N805  self is the handler's
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except ConnectionError:  # of a client that was killed
                    self.close_connection = True

            def _pass_on(self) -> None:
                body = self._body()
                fault = store.choose_fault(self.command, self.path)
                if isinstance(fault, Refused):
                    self._answer(fault.status, ERROR.format(fault.code).encode(), {"Content-Type": "application/xml"})
                    return
                path = self.path.replace("max-keys=1000", f"max-keys={store.max_keys}")
                dropped = ("transfer-encoding", "expect", "connection")
                headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
                answer = store.ask_server(self.command, path, body, headers | {"Content-Length": str(len(body))})
                self._answer(answer.status, answer.read(), dict(answer.getheaders()), is_cut=isinstance(fault, Cut))

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding") != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length") or 0))
                parts = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                while self.rfile.readline().strip():
                    pass
                return b"".join(parts)

            def _answer(self, status: int, body: bytes, headers: dict[str, str], *, is_cut: bool = False) -> None:
                self.send_response_only(status)
                length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
                dropped = ("connection", "transfer-encoding", "content-length")
                for name, value in headers.items():
                    if name.lower() not in dropped:
                        self.send_header(name, value)
                self.send_header("Content-Length", length)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body[: len(body) // 2] if is_cut else body)
                self.close_connection = is_cut

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on

            def log_message(self, *_: object) -> None:
                """Nothing."""

        return Handler


@contextmanager
def s3_server(address: str = "127.0.0.1") -> Iterator[FaultyStore]:
    """A server with an empty bucket, which listens at an address of this host."""
    if not PYTHON.exists() or subprocess.run([PYTHON, "-c", HAS_MOTO], check=False).returncode:
        pytest.skip("moto is not installed: run `make clients`")
    [port] = free_ports(1)
    command = [PYTHON, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    store = FaultyStore(port, address)
    object_stores._open_store.cache_clear()  # of this process, which may know another server
    try:
        wait_for(lambda: server.poll() is not None or _answers(store), "the S3 server answers", 120)
        assert store.ask_server("PUT", f"/{BUCKET}", b"", {}).status == 200
        yield store
    finally:
        store.close()
        server.kill()
        server.wait()


def _answers(store: FaultyStore) -> bool:
    try:
        return store.ask_server("GET", "/", b"", {}).status == 200
    except ConnectionError:
        return False
