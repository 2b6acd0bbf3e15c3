"""A cloud address on loopback that records every byte it is sent and can be told to misbehave."""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[BaseHTTPRequestHandler], None]


class FakeCloud:
    """The server; ``requests`` are (path, headers, body) as they came."""

    def __init__(self, answer: Answer | None = None, context: ssl.SSLContext | None = None) -> None:
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.answer: Answer = answer or streamed("Hello", " there")
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                outer.requests.append((self.path, headers, body))
                with contextlib.suppress(OSError):  # the client went away
                    outer.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:  # a refused handshake is no news
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        scheme = "http" if context is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> FakeCloud:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def send(
    handler: BaseHTTPRequestHandler, status: int, content_type: str, body: bytes, **headers: str
) -> None:
    """A whole response."""
    handler.send_response(status)
    handler.send_header("Content-Type", content_type)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def events(*texts: str, end: bool = True) -> Iterator[bytes]:
    """Server-sent events of a chat completion."""
    for text in texts:
        event = {"choices": [{"index": 0, "delta": {"content": text}}]}
        yield f"data: {json.dumps(event, ensure_ascii=False)}\n\n".encode()
    if end:
        yield b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


def streamed(*texts: str, end: bool = True) -> Answer:
    """An answer in pieces."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        send(handler, 200, "text/event-stream", b"")
        for event in events(*texts, end=end):
            handler.wfile.write(event)
            handler.wfile.flush()

    return answer


def failing(status: int, message: str) -> Answer:
    """An error in OpenAI's form."""
    body = json.dumps({"error": {"message": message}}).encode()
    return lambda handler: send(handler, status, "application/json", body)
