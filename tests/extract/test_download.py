"""Weights from a real HTTP server on loopback: cut connections, ranges, several processes at once."""

from __future__ import annotations

import http.client
import http.server
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from diffssl.extract import MissingWeights, download, zoo
from diffssl.extract.job import prepare
from diffssl.extract.zoo import ModelSource, find_model

CONTENT = np.random.default_rng(3).integers(0, 256, 3_000_000, dtype=np.uint8).tobytes()


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT at /weights.pt.

    ``cuts`` are the numbers of bytes after which the next answers break off; ``ranges`` whether it knows ranges.
    """

    cuts: list[int]
    ranges = True
    length = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.cuts = []
        self.requests: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/weights.pt"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers["Range"]
        self.server.requests.append(wanted)
        if self.path != "/weights.pt":
            self.send_error(404)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and self.server.ranges else 0  # type: ignore[index]
        if start >= len(CONTENT):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if wanted and self.server.ranges else 200)
        if self.server.length:
            self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        part = CONTENT[start:]
        self.wfile.write(part[: self.server.cuts.pop(0)] if self.server.cuts else part)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "_PAUSES", (0.0, 0.0, 0.0))
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_a_file_arrives_whole(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "cache" / "weights.pt"
    download.download(server.url, target)
    assert target.read_bytes() == CONTENT
    assert list(target.parent.iterdir()) == [target]


def test_a_connection_that_breaks_is_taken_up_again(server: Server, tmp_path: Path) -> None:
    server.cuts = [1_000_000, 500_000]
    download.download(server.url, tmp_path / "weights.pt")
    assert (tmp_path / "weights.pt").read_bytes() == CONTENT
    assert server.requests == [None, "bytes=1000000-", "bytes=1500000-"]


def test_a_later_run_goes_on(server: Server, tmp_path: Path) -> None:
    """Four cuts are one too many for a run; nothing is at the place of the weights, and the next run needs the rest only."""
    server.cuts = [100_000] * 4
    with pytest.raises(http.client.IncompleteRead):
        download.download(server.url, tmp_path / "weights.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pt.part"]
    server.requests.clear()
    download.download(server.url, tmp_path / "weights.pt")
    assert server.requests == ["bytes=400000-"]
    assert (tmp_path / "weights.pt").read_bytes() == CONTENT


def test_a_server_without_ranges_sends_all_again(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / "weights.pt.part").write_bytes(b"x" * 1000)
    download.download(server.url, tmp_path / "weights.pt")
    assert (tmp_path / "weights.pt").read_bytes() == CONTENT


def test_killed_after_the_last_byte(server: Server, tmp_path: Path) -> None:
    (tmp_path / "weights.pt.part").write_bytes(CONTENT)
    download.download(server.url, tmp_path / "weights.pt")
    assert (tmp_path / "weights.pt").read_bytes() == CONTENT


def test_more_than_the_whole_is_refused(server: Server, tmp_path: Path) -> None:
    (tmp_path / "weights.pt.part").write_bytes(CONTENT + b"x")
    with pytest.raises(OSError, match="416"):
        download.download(server.url, tmp_path / "weights.pt")
    assert not (tmp_path / "weights.pt").exists()


def test_a_length_that_is_not_announced_is_refused(server: Server, tmp_path: Path) -> None:
    server.length = False
    with pytest.raises(OSError, match="does not say how long"):
        download.download(server.url, tmp_path / "weights.pt")


def test_one_download_for_many(server: Server, tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(lambda _: download.download(server.url, tmp_path / "weights.pt"), range(8)):
            pass
    assert (tmp_path / "weights.pt").read_bytes() == CONTENT
    assert server.requests == [None]
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pt"]


def test_what_cannot_be_had_is_said(server: Server, tmp_path: Path) -> None:
    source = ModelSource("adm64", tmp_path / "a.pt", {}, server.url.replace("weights", "nothing"))
    with pytest.raises(MissingWeights) as caught:
        download.fetch_weights(source, lambda _: None)
    for part in ("404", str(source.url), str(source.weights)):
        assert part in str(caught.value)


@pytest.mark.parametrize("source", [find_model(None, None, None), ModelSource("own", Path("nowhere"), {})])
def test_own_weights_are_not_downloaded(source: ModelSource) -> None:
    download.fetch_weights(source, lambda _: pytest.fail("nothing is to be said"))


def test_a_published_model_is_downloaded_on_first_use(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_spec: Callable[..., object],
) -> None:
    monkeypatch.setenv("DIFFSSL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(zoo, "_PUBLIC", server.url.rpartition("/")[0])
    monkeypatch.setitem(zoo.PUBLISHED, "adm-tiny", ("weights.pt", zoo.PUBLISHED["adm64"][1] | {"class_cond": False}))
    spec = make_spec(model="adm-tiny")
    planned = prepare(spec, lambda _: None, fetch=False)  # type: ignore[arg-type]
    assert server.requests == []
    assert planned.header.identity.fields["weights_sha256"] == "not downloaded"
    lines: list[str] = []
    for _ in range(2):
        job = prepare(spec, lines.append)  # type: ignore[arg-type]
        assert job.header.identity.fields["weights_sha256"] == sha256(CONTENT).hexdigest()
    assert len(server.requests) == 1
    assert sum("downloading the weights of adm-tiny" in line for line in lines) == 1
