"""Downloads that survive a broken connection, a killed process and a second try."""

from __future__ import annotations

import http.client
import json
import re
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock

from stan.data.progress import byte_progress
from stan.errors import DataError
from stan.files import free_space, sha256_of

_CHUNK = 1 << 18
_RETRIED = {408, 425, 429, 500, 502, 503, 504}


class _Broken(Exception):
    """The connection broke; another try may go further."""


def download(
    url: str,
    target: Path,
    *,
    sha256: str | None = None,
    progress: bool = True,
    attempts: int = 5,
    timeout: float = 30,
    pause: float = 1,
) -> Path:
    """Download a file, going on where an earlier try stopped.

    What has arrived is kept in `<target>.part`, with a note of the file's identity (ETag, date, size) beside
    it: if the server's file has changed meanwhile, the download starts anew. The final name appears once the
    size, and the checksum if given, are right.

    Args:
        url: http or https address.
        target: file to write; if it exists (and its checksum is right) nothing is done.
        sha256: checksum in hexadecimal digits, if known.
        progress: show a progress bar on standard error.
        attempts: tries in a row that may bring nothing before giving up.
        timeout: seconds without data after which a connection counts as broken.
        pause: seconds before the second try in a row; doubled for each further one.

    Returns:
        `target`.

    Raises:
        DataError: no network, a refusal by the server, a wrong checksum, or no room. Says what to do instead.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise DataError(f"{url!r} is not an http or https address (a file on this machine: --archive)")
    if target.is_file() and (sha256 is None or sha256_of(target) == sha256.lower()):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = Path(f"{target}.lock")
    try:
        with filelock.FileLock(lock):
            if not target.is_file():
                _fetch(url, target, progress, attempts, timeout, pause)
            if sha256 is not None and (found := sha256_of(target)) != sha256.lower():
                target.unlink()
                raise DataError(f"{url} has SHA-256 {found}, expected {sha256.lower()}: it was removed")
    finally:
        lock.unlink(missing_ok=True)
    return target


def _fetch(url: str, target: Path, progress: bool, attempts: int, timeout: float, pause: float) -> None:
    part, note = Path(f"{target}.part"), Path(f"{target}.part.json")
    failures = 0
    with byte_progress(target.name, shown=progress) as show:
        while True:
            before = part.stat().st_size if part.exists() else 0
            try:
                _one_try(url, part, note, show, timeout)
                break
            except _Broken as error:
                gained = part.exists() and part.stat().st_size > before
                failures = 1 if gained else failures + 1
                if failures >= attempts:
                    raise DataError(
                        f"{url}: {error}; the same command goes on from what has arrived "
                        "(without a network: download it elsewhere and give it by --archive)"
                    ) from None
                time.sleep(pause * 2 ** (failures - 1))
    part.replace(target)
    note.unlink(missing_ok=True)


def _one_try(
    url: str, part: Path, note: Path, show: Callable[[int, int | None], None], timeout: float
) -> None:
    """Fetch the rest of a file into `part`; raises _Broken if another try may help."""
    known = _read_note(note, url)
    have = part.stat().st_size if part.exists() and known else 0
    headers = {"User-Agent": "stan-video", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if known.get("validator"):
            headers["If-Range"] = known["validator"]
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is left to send, or the file has shrunk
            if known.get("size") == have:
                return
            part.unlink()
            raise _Broken("the server's file has changed") from None
        if error.code in _RETRIED:
            raise _Broken(f"the server answers {error.code} {error.reason}") from None
        raise DataError(
            f"{url}: the server answers {error.code} {error.reason}: give another address by --url"
        ) from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, socket.gaierror):
            host = urllib.parse.urlsplit(url).hostname
            raise DataError(
                f"cannot find {host}: no network? Download {url} on another machine and give it by --archive"
            ) from None
        raise _Broken(f"no connection ({error.reason})") from None
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(f"no connection ({error or type(error).__name__})") from None
    with response:
        start, size = _extent(response)
        if start not in (0, have) or (start and known.get("size") not in (None, size)):
            part.unlink(missing_ok=True)
            raise _Broken("the server's file has changed")
        if size is not None and size - start > (free := free_space(part.parent)):
            raise DataError(
                f"{part.parent} has {free / 1e9:.2f} GB free, the download needs {(size - start) / 1e9:.2f} GB"
            )
        validator = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if validator and validator.startswith("W/"):  # a weak tag does not promise the same bytes
            validator = response.headers.get("Last-Modified")
        if not start:
            note.write_text(json.dumps({"url": url, "size": size, "validator": validator}))
        arrived = start
        show(arrived, size)
        with part.open("ab" if start else "wb") as file:
            while True:
                try:
                    piece = response.read(_CHUNK)
                except (OSError, http.client.HTTPException) as error:
                    raise _Broken(f"the connection broke ({error or type(error).__name__})") from None
                if not piece:
                    break
                file.write(piece)
                arrived += len(piece)
                show(arrived, size)
    if size is not None and arrived != size:
        raise _Broken(f"the connection broke after {arrived} of {size} bytes")


def _extent(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """Give where the body starts in the file, and the file's size if the server tells."""
    if response.status == 206:
        span = re.fullmatch(r"bytes (\d+)-.*/(?:\*|(\d+))", response.headers.get("Content-Range", ""))
        if span is None:
            raise _Broken("the server's answer makes no sense (Content-Range)")
        return int(span[1]), int(span[2]) if span[2] else None
    length = response.headers.get("Content-Length")
    return 0, int(length) if length and length.isdigit() else None


def _read_note(note: Path, url: str) -> dict[str, Any]:
    try:
        known = json.loads(note.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) and known.get("url") == url else {}
