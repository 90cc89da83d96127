"""A web server on loopback, which answers as tests need it: well, or with the faults that real ones have."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from unittest import mock


class Loopback(ThreadingHTTPServer):
    """What it serves, and what it was asked: `requests` as (path, Range header or None), `sent` as bytes of each body."""

    daemon_threads = True

    def __init__(self, files: Mapping[str, bytes], **faults: Any) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = dict(files)
        self.faults = faults
        self.requests: list[tuple[str, str | None]] = []
        self.sent: list[int] = []
        self.lock = threading.Lock()

    def url(self, path: str) -> str:
        """The address of a path that begins with a slash."""
        return f"http://127.0.0.1:{self.server_port}{path}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is its own affair; anything else is a bug of a test."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: Loopback  # type: ignore[assignment]

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        asked, faults = self.headers["Range"], self.server.faults
        with self.server.lock:
            number = len(self.server.requests)
            self.server.requests.append((self.path, asked))
            self.server.sent.append(0)
        if number < len(faults["failures"]):
            self.send_error(faults["failures"][number])
        elif self.path in faults["redirects"]:
            self.send_response(302)
            self.send_header("Location", faults["redirects"][self.path])
            self.end_headers()
        elif self.path not in self.server.files:
            self.send_error(404)
        else:
            self._answer(number, self.server.files[self.path], asked)

    def _answer(self, number: int, content: bytes, asked: str | None) -> None:
        faults = self.server.faults
        start = 0
        if asked is not None and faults["ranges"] != "ignored":
            found = re.fullmatch(r"bytes=(\d+)-", asked)
            assert found, asked
            start = 0 if faults["ranges"] == "misplaced" else int(found[1])
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        body = content[start:] + bytes(faults["excess"])
        if faults["announced"] != "nothing":
            length = len(body) if faults["announced"] is None else faults["announced"]
            self.send_header("Content-Length", str(length))
        self.end_headers()
        time.sleep(faults["pause"])
        if number < faults["cuts"]:
            body = body[: faults["cut_after"]]
        self.server.sent[number] = len(body)
        self.wfile.write(body)


@contextmanager
def serving(
    files: Mapping[str, bytes],
    *,
    failures: Sequence[int] = (),
    redirects: Mapping[str, str] | None = None,
    ranges: Literal["kept", "ignored", "misplaced"] = "kept",
    announced: int | Literal["nothing"] | None = None,
    excess: int = 0,
    cut_after: int = 0,
    cuts: int = 0,
    pause: float = 0.0,
) -> Iterator[Loopback]:
    """A server on a free port of 127.0.0.1, until the block ends; no proxy of the environment comes between.

    Args:
        files: content by path, such as "/name.zip"; any other path is a 404. `server.files` may be changed meanwhile.
        failures: statuses with which the first requests are answered, one each.
        redirects: where a path leads instead, as a whole address.
        ranges: what becomes of a Range header: answered, ignored (200 and the whole), or answered with a wrong range.
        announced: the Content-Length that is told instead of the true one; "nothing" leaves it out.
        excess: bytes that follow the content, and count in its Content-Length.
        cut_after: bytes of the body after which the connection is cut, in the first `cuts` requests.
        cuts: how many requests are cut.
        pause: seconds between the headers and the body.
    """
    server = Loopback(
        files,
        failures=failures,
        redirects=redirects or {},
        ranges=ranges,
        announced=announced,
        excess=excess,
        cut_after=cut_after,
        cuts=cuts,
        pause=pause,
    )
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        with mock.patch.dict(os.environ, no_proxy="127.0.0.1"):
            yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def closed_port() -> int:
    """A port of 127.0.0.1 at which nothing listens: what being offline looks like."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        return server.server_port
