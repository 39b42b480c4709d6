"""An OpenAI-compatible chat endpoint that answers, or fails as one can: a real HTTP server in this process."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = dict[str, Any]


def completion(content: str | None, finish: str = "stop", refusal: str | None = None) -> Answer:
    message = {"role": "assistant", "content": content, "refusal": refusal}
    return {
        "id": "1", "object": "chat.completion", "created": 0, "model": "judge",
        "choices": [{"index": 0, "finish_reason": finish, "message": message}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
    }  # fmt: skip


class ChatEndpoint:
    """Answers what `says` makes of the prompt: a completion, a status, or nothing for so many seconds."""

    def __init__(self) -> None:
        self.says: Callable[[str], Answer | int | float] = lambda prompt: completion("Good day.")
        self.prompts: list[str] = []
        self.bodies: list[Answer] = []
        self.stopping = threading.Event()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                prompt = body["messages"][0]["content"]
                endpoint.prompts.append(prompt)
                endpoint.bodies.append(body)
                said = endpoint.says(prompt)
                if isinstance(said, float):
                    endpoint.stopping.wait(said)
                    said = 500
                self.send_response(said if isinstance(said, int) else 200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Retry-After-Ms", "1")  # the client keeps to it
                self.end_headers()
                with suppress(ConnectionError):  # a client that did not wait
                    self.wfile.write(json.dumps({"error": {}} if isinstance(said, int) else said).encode())

            def log_message(self, *_: Any) -> None:
                """Silent."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/v1"

    def stop(self) -> None:
        self.stopping.set()
        self.server.shutdown()
        self.server.server_close()
