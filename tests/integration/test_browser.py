"""Pages that a browser on this machine shows, and an endpoint without keys: a real browser, and the real doorkeeper.

The doorkeeper stands before an app that only notes what reaches it. `/health`, which is open to all, is a page here
that asks for more; so a page has the endpoint's own origin, as after DNS rebinding.
"""

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
from ray_head import free_ports, wait_for
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse
from starlette.routing import Route

from sbp_ray.engine.access import KEYS_VARIABLE
from sbp_ray.engine.http_limits import Doorkeeper

pytestmark = pytest.mark.slow

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NAMES = "MAP another.example 127.0.0.1, MAP rebound.example 127.0.0.1"

PAGE = """<pre id=told>nothing</pre><script>
const ask = async (path, options) => {
  try { const got = await fetch(`TARGET${path}`, options); return got.type === "opaque" ? "opaque" : got.status }
  catch (error) { return "kept out" }
};
const post = (type, mode) => ({method: "POST", body: "{}", mode, headers: {"Content-Type": type}});
(async () => {
  const told = [
    await ask("/v1/models", {}), await ask("/v1/models", {mode: "no-cors"}),
    await ask("/v1/completions", post("application/json", "cors")),
    await ask("/v1/completions", post("text/plain", "no-cors")),
  ];
  document.getElementById("told").textContent = JSON.stringify(told);
})();
</script>"""


@contextmanager
def served(app: Starlette) -> Iterator[int]:
    [port] = free_ports(1)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_for(lambda: server.started, "the server listens", 60)
    yield port
    server.should_exit = True
    thread.join()


def told_in_browser(url: str, folder: Path) -> list[int | str]:
    """What the page's four requests came to."""
    if BROWSER is None:
        pytest.skip("there is no chromium here")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-proxy-server"]
    flags += [f"--user-data-dir={folder}", f"--host-resolver-rules={NAMES}", "--virtual-time-budget=20000"]
    done = subprocess.run([BROWSER, *flags, "--dump-dom", url], capture_output=True, text=True, timeout=300)
    found = re.search(r"<pre id=\"told\">(.*?)</pre>", done.stdout)
    assert found, done.stdout + done.stderr
    return json.loads(found[1])


@pytest.mark.parametrize(
    ("host", "told", "reached"),
    [
        ("another.example", ["kept out", "opaque", "kept out", "opaque"], 0),  # a page of another origin
        ("rebound.example", [403, 403, 403, 403], 0),  # its own name resolves to this machine
        ("localhost", [200, 200, 200, 200], 4),  # what the endpoint might show of its own
    ],
)
def test_only_the_endpoints_own_pages_reach_it(
    host: str, told: list[int | str], reached: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEYS_VARIABLE, raising=False)
    got_through: list[str] = []

    async def note(request: Request) -> JSONResponse:
        got_through.append(f"{request.method} {request.url.path}")
        return JSONResponse({})

    async def page(_: Request) -> HTMLResponse:
        return HTMLResponse(PAGE.replace("TARGET", f"http://127.0.0.1:{port}" if host == "another.example" else ""))

    routes = [Route("/v1/models", note), Route("/v1/completions", note, methods=["POST"]), Route("/health", page)]
    guarded = Starlette(routes=routes, middleware=[Middleware(Doorkeeper, keys_file=None)])
    with served(guarded) as port, served(Starlette(routes=[Route("/health", page)])) as elsewhere:
        shown_at = elsewhere if host == "another.example" else port
        assert told_in_browser(f"http://{host}:{shown_at}/health", tmp_path) == told
    assert len(got_through) == reached
