"""Downloading published weights: resumed, checked for size, and at its place only when it is whole."""

from __future__ import annotations

import fcntl
import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO

from ..store.progress import progress_bar
from .errors import MissingWeights
from .zoo import ModelSource

_BLOCK = 1 << 20
_TIMEOUT = 30  # seconds without a byte
_PAUSES = (1.0, 5.0, 15.0)  # before going on after a connection that broke


def fetch_weights(source: ModelSource, echo: Callable[[str], object]) -> None:
    """Download a published model's weights into the cache folder, unless they are there.

    Raises:
        MissingWeights: they cannot be had; with the address and the path to put the file at.
    """
    if source.url is None or source.weights.exists():
        return
    echo(f"downloading the weights of {source.name} to {source.weights}")
    try:
        download(source.url, source.weights)
    except (OSError, http.client.HTTPException) as error:
        raise MissingWeights(
            f"the weights of {source.name} are not in the cache and cannot be downloaded ({error}). Download\n  {source.url}\n"
            f"and put the file at\n  {source.weights}\nor run again: what has come already is kept"
        ) from error


def download(url: str, target: Path) -> None:
    """Download a file to ``target``, going on where an earlier attempt was cut off.

    Processes that download the same file at once take turns: the first does the work, the others find it done.

    Raises:
        OSError, http.client.HTTPException: the server cannot be reached, or does not send what it announces.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    with part.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if target.exists():  # somebody else's turn came first
            part.unlink(missing_ok=True)
            return
        for pause in (*_PAUSES, None):
            before = file.tell()
            try:
                _go_on(url, file)
                break
            except (TimeoutError, ConnectionError, http.client.IncompleteRead):
                if pause is None or file.tell() == before:
                    raise
                time.sleep(pause)
        part.replace(target)


def _go_on(url: str, file: IO[bytes]) -> None:
    """Append what is still to come. Raises as :func:`download`; what came stays in the file."""
    start = file.tell()
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if (
            error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
            and error.headers["Content-Range"] == f"bytes */{start}"
        ):
            return  # all of it had come
        raise
    with response:
        if start and response.status != http.HTTPStatus.PARTIAL_CONTENT:
            start = 0  # the server sends all of it again
            file.truncate(0)
        length = response.headers["Content-Length"]
        if length is None:
            raise OSError(f"{url}: the server does not say how long the file is")
        total = start + int(length)
        with progress_bar(total, "B", "download") as bar:
            bar.unit_scale = True
            bar.update(start)
            while block := response.read(_BLOCK):
                file.write(block)
                bar.update(len(block))
        file.flush()
    if file.tell() != total:
        raise http.client.IncompleteRead(b"", total - file.tell())
