"""Downloads against a real server on this machine, one that breaks off, changes its mind and lies."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from stan.data.download import download
from stan.errors import DataError

BODY = np.random.default_rng(0).bytes(1_000_003)
SHA = hashlib.sha256(BODY).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `body` at any path; attributes say how badly."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.body = BODY
        self.etag: str | None = '"one"'
        self.ranges = True
        self.sends_length = True
        self.breaks: list[int] = []  # bytes after which each of the next answers breaks off
        self.answers: list[int] = []  # status codes of the next answers, before it serves
        self.asked: list[str | None] = []  # Range headers seen

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/some/data.zip"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        wanted = self.headers.get("Range")
        server.asked.append(wanted)
        if server.answers:
            self.send_error(server.answers.pop(0))
            return
        start = 0
        fresh = self.headers.get("If-Range") in (None, server.etag)
        if wanted and server.ranges and fresh:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        if start >= len(server.body) and start:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.body)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.body) - 1}/{len(server.body)}")
        if server.sends_length:
            self.send_header("Content-Length", str(len(server.body) - start))
        if server.etag:
            self.send_header("ETag", server.etag)
        self.end_headers()
        piece = server.body[start:]
        if server.breaks:
            piece = piece[: server.breaks.pop(0)]
        self.wfile.write(piece)
        self.close_connection = True

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def get(server: Server, target: Path, **options: object) -> Path:
    return download(server.url, target, progress=False, pause=0.001, timeout=10, **options)


def assert_complete(target: Path, body: bytes = BODY) -> None:
    assert target.read_bytes() == body
    assert [path.name for path in target.parent.iterdir()] == [target.name], "nothing else should be left"


def test_a_whole_file(server: Server, tmp_path: Path) -> None:
    assert get(server, tmp_path / "d/a.zip", sha256=SHA.upper()) == tmp_path / "d/a.zip"
    assert_complete(tmp_path / "d/a.zip")
    get(server, tmp_path / "d/a.zip", sha256=SHA)
    assert server.asked == [None], "a complete file is not fetched again"


def test_a_broken_connection_is_resumed_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.breaks = [300_000, 400_000]
    get(server, tmp_path / "a.zip", sha256=SHA)
    assert_complete(tmp_path / "a.zip")
    assert server.asked == [None, "bytes=300000-", "bytes=700000-"]


def test_a_second_command_goes_on_from_the_first(server: Server, tmp_path: Path) -> None:
    server.breaks = [500_000, 0, 0]
    with pytest.raises(DataError, match="goes on from what has arrived") as caught:
        get(server, tmp_path / "a.zip", attempts=3)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a.zip").exists()
    server.asked.clear()
    get(server, tmp_path / "a.zip", sha256=SHA)
    assert server.asked == ["bytes=500000-"]
    assert_complete(tmp_path / "a.zip")


def test_a_file_that_changed_meanwhile_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    server.breaks = [500_000, 0]
    with pytest.raises(DataError):
        get(server, tmp_path / "a.zip", attempts=1)
    server.body, server.etag, server.breaks = BODY[::-1], '"two"', []
    get(server, tmp_path / "a.zip")
    assert_complete(tmp_path / "a.zip", BODY[::-1])


def test_a_file_that_changed_without_an_etag_but_in_size(server: Server, tmp_path: Path) -> None:
    server.etag = None
    server.breaks = [500_000, 0]
    with pytest.raises(DataError):
        get(server, tmp_path / "a.zip", attempts=1)
    server.body, server.breaks = BODY[:700_000][::-1], []
    get(server, tmp_path / "a.zip")
    assert_complete(tmp_path / "a.zip", server.body)


def test_a_file_that_shrank_below_what_has_arrived(server: Server, tmp_path: Path) -> None:
    server.etag = None
    server.breaks = [500_000, 0]
    with pytest.raises(DataError):
        get(server, tmp_path / "a.zip", attempts=1)
    server.body, server.breaks = BODY[:1000], []
    get(server, tmp_path / "a.zip")
    assert_complete(tmp_path / "a.zip", BODY[:1000])


def test_another_address_does_not_continue_the_first(server: Server, tmp_path: Path) -> None:
    server.breaks = [500_000, 0]
    with pytest.raises(DataError):
        get(server, tmp_path / "a.zip", attempts=1)
    server.body, server.breaks = BODY[::-1], []
    download(server.url + "?mirror", tmp_path / "a.zip", progress=False, pause=0)
    assert_complete(tmp_path / "a.zip", BODY[::-1])


def test_a_server_without_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.breaks = [300_000]
    get(server, tmp_path / "a.zip", sha256=SHA)
    assert_complete(tmp_path / "a.zip")


def test_a_server_that_does_not_tell_the_length(server: Server, tmp_path: Path) -> None:
    server.sends_length = False
    get(server, tmp_path / "a.zip", sha256=SHA)
    assert_complete(tmp_path / "a.zip")


def test_a_killed_process_after_the_last_byte(server: Server, tmp_path: Path) -> None:
    """All has arrived but the name was not yet given: the server has nothing more to send (416)."""
    server.breaks = [1000, 0]
    with pytest.raises(DataError):
        get(server, tmp_path / "a.zip", attempts=1)
    (tmp_path / "a.zip.part").write_bytes(BODY)
    get(server, tmp_path / "a.zip", sha256=SHA)
    assert_complete(tmp_path / "a.zip")


def test_busy_servers_are_asked_again(server: Server, tmp_path: Path) -> None:
    server.answers = [503, 429, 500]
    get(server, tmp_path / "a.zip", sha256=SHA)
    assert_complete(tmp_path / "a.zip")


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_refusals_are_told_at_once(code: int, server: Server, tmp_path: Path) -> None:
    server.answers = [code]
    with pytest.raises(DataError, match=rf"answers {code} .*--url"):
        get(server, tmp_path / "a.zip")
    assert len(server.asked) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_checksum_removes_the_file(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"SHA-256 {SHA}, expected 0000"):
        get(server, tmp_path / "a.zip", sha256="0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_no_server_and_no_network(tmp_path: Path, server: Server) -> None:
    closed = server.url
    server.shutdown()
    server.server_close()
    with pytest.raises(DataError, match=r"no connection .*--archive"):
        download(closed, tmp_path / "a.zip", progress=False, attempts=2, pause=0)
    with pytest.raises(DataError, match=r"cannot find no-such-host\.invalid: no network\? .*--archive"):
        download("http://no-such-host.invalid/a.zip", tmp_path / "a.zip", progress=False)
    for url in ("ftp://x/a.zip", "/etc/passwd", "file:///etc/passwd"):
        with pytest.raises(DataError, match="not an http"):
            download(url, tmp_path / "a.zip")


def test_no_room(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(DataError, match=r"0\.00 GB free, the download needs"):
        get(server, tmp_path / "a.zip")
