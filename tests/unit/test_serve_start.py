"""What is wrong with a deployment is said in one line, before anything starts where it can be known."""

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve._private.deploy_utils import get_app_code_version

from sbp_ray.artifacts import Artifact
from sbp_ray.errors import SbpError
from serve_apps import start

ADDRESS = "http://127.0.0.1:8265"


def config(folder: Path, model: str, http: dict[str, Any] | None = None, **args: Any) -> Path:
    application = {"name": "synthesizer", "import_path": "serve_apps.synthesizer:app", "args": {"model": model, **args}}
    file = folder / "serve.yaml"
    file.write_text(yaml.safe_dump({"http_options": http or {}, "applications": [application]}))
    return file


def test_a_config_of_a_model_that_is_there_is_accepted(tiny_synthesizer: Artifact, tmp_path: Path) -> None:
    deployed = start.checked(config(tmp_path, tiny_synthesizer.path("model")))
    assert [application.name for application in deployed.applications] == ["synthesizer"]


def test_another_model_in_the_same_folder_makes_another_application(
    tiny_synthesizer: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Serve's own reading of what has to be built anew."""
    file = config(tmp_path, tiny_synthesizer.path("model"))
    before = [get_app_code_version(application) for application in start.checked(file).applications]
    assert [get_app_code_version(application) for application in start.checked(file).applications] == before
    monkeypatch.setattr(Artifact, "fingerprint", lambda _: "another")
    assert [get_app_code_version(application) for application in start.checked(file).applications] != before


def test_a_model_that_is_not_there_is_named_with_what_makes_it(tmp_path: Path) -> None:
    with pytest.raises(SbpError, match=f"{tmp_path}/model is not the model folder .*: run jobs/tune.py first"):
        start.checked(config(tmp_path, f"{tmp_path}/model"))


def test_a_misspelt_argument_is_named(tiny_synthesizer: Artifact, tmp_path: Path) -> None:
    file = config(tmp_path, tiny_synthesizer.path("model"), engine={"max_model_length": 5})
    with pytest.raises(SbpError, match=r"synthesizer: engine.max_model_length=5: no such setting; did you mean"):
        start.checked(file)


def test_a_keys_file_that_is_not_there_is_named(tiny_synthesizer: Artifact, tmp_path: Path) -> None:
    file = config(tmp_path, tiny_synthesizer.path("model"), service={"keys_file": f"{tmp_path}/keys.txt"})
    with pytest.raises(SbpError, match=r"keys.txt: cannot be read: name a text file with one key a line"):
        start.checked(file)


def test_a_port_in_use_is_named(tiny_synthesizer: Artifact, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        file = config(tmp_path, tiny_synthesizer.path("model"), {"host": "0.0.0.0", "port": port})
        deployed = start.checked(file)
        with pytest.raises(SbpError, match=f"port {port} of 127.0.0.1 is taken: stop what listens there"):
            start.refuse_taken_address({"proxies": {}}, deployed, ADDRESS)
        there = {"proxies": {"node": {}}, "http_options": {"host": "0.0.0.0", "port": port}}
        start.refuse_taken_address(there, deployed, ADDRESS)  # Serve itself listens there


def test_serve_that_listens_elsewhere_is_named(tiny_synthesizer: Artifact, tmp_path: Path) -> None:
    deployed = start.checked(config(tmp_path, tiny_synthesizer.path("model"), {"host": "127.0.0.1", "port": 8001}))
    details = {"proxies": {"node": {}}, "http_options": {"host": "127.0.0.1", "port": 8000}}
    with pytest.raises(SbpError, match=r"listens on 127.0.0.1:8000 until it ends, and not on 127.0.0.1:8001"):
        start.refuse_taken_address(details, deployed, ADDRESS)


def test_where_there_is_no_ray_that_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(SbpError, match=f"there is no Ray at http://127.0.0.1:{port}: run `ray start --head`"):
        start.connected(f"http://127.0.0.1:{port}")


class Details:
    """A client of a Ray whose Serve says one thing after the other."""

    def __init__(self, *said: tuple[str, str]) -> None:
        self._said = list(said)

    def get_serve_details(self) -> dict[str, Any]:
        status, message = self._said.pop(0)
        deployments = {"SynthesizerServer": {"status": "UPDATING", "message": message}}
        return {"applications": {"synthesizer": {"status": status, "message": "", "deployments": deployments}}}


def test_it_waits_until_the_application_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "_ASK_EVERY_S", 0)
    monkeypatch.setattr(start, "_REPORT_EVERY_S", 0)
    said: list[str] = []
    monkeypatch.setattr(start.logger, "info", said.append)
    start.wait_until_running(Details(("DEPLOYING", "no\nCPU"), ("RUNNING", "")), ["synthesizer"])  # type: ignore[arg-type]
    assert [line.partition("| waiting since ")[2].partition(" | ")[2] for line in said] == [
        "SynthesizerServer updating no CPU"
    ]


def test_the_reason_of_an_application_that_cannot_start_is_one_line() -> None:
    message = 'Traceback (most recent call last):\n  File "x", line 3\nsbp_ray.errors.SbpError: no key: set one'
    with pytest.raises(SbpError, match=r"^synthesizer cannot start: no key: set one$"):
        start.wait_until_running(Details(("DEPLOY_FAILED", message)), ["synthesizer"])  # type: ignore[arg-type]


class LateDashboard(BaseHTTPRequestHandler):
    """Knows no application, and has not put up one in time."""

    def do_GET(self) -> None:
        self._say(200, {"ray_version": "2.60.0", "applications": {}, "proxies": {}})

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self._say(504, {})

    def _say(self, status: int, said: dict[str, Any]) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(said).encode())

    def log_message(self, *_: Any) -> None:
        pass


def test_a_config_that_serve_has_not_taken_is_said_in_one_line(tiny_synthesizer: Artifact, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    file = config(tmp_path, tiny_synthesizer.path("model"), {"host": "127.0.0.1", "port": port})
    with HTTPServer(("127.0.0.1", 0), LateDashboard) as dashboard:
        thread = threading.Thread(target=dashboard.serve_forever)
        thread.start()
        try:
            with pytest.raises(SbpError, match=r"serve.yaml: .* status code 504: .*: see `serve status`$"):
                start.start(file, f"http://127.0.0.1:{dashboard.server_port}")
        finally:
            dashboard.shutdown()
            thread.join()
