from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffssl.extract import ExtractError, loading, noise_for
from diffssl.extract.images import decode
from diffssl.extract.loading import ImageBatch, Loader
from diffssl.extract.sources import SplitData, load_data

Write = Callable[[Path, Iterable[str]], None]


@pytest.fixture
def loader() -> Iterator[Loader]:
    """Images of 16 pixels in batches of 4."""
    loader = Loader(16, 4, 2)
    yield loader
    loader.close()


@pytest.fixture
def folder(tmp_path: Path, write_images: Write) -> Path:
    """Ten images."""
    write_images(tmp_path / "x", [f"cat/{i}.png" for i in range(10)])
    return tmp_path / "x"


def split(folder: Path) -> SplitData:
    return load_data([str(folder)]).splits["all"]


def results(futures: list[Future[Any]]) -> list[Any]:
    return [future.result(timeout=60) for future in futures]


def test_batches_are_full_and_in_order(loader: Loader, folder: Path) -> None:
    data = split(folder)
    batches: list[ImageBatch] = results(loader.batches(data, range(0, 10)))
    assert [batch.start for batch in batches] == [0, 4, 8]
    assert [list(batch.ids) for batch in batches] == [data.ids[0:4].tolist(), data.ids[4:8].tolist(), data.ids[8:].tolist()]
    for batch in batches:
        assert batch.pixels.shape == (4, 16, 16, 3)
        assert batch.pixels.dtype == np.uint8
        assert batch.left_out == {}
        for i, sample in enumerate(batch.ids):
            np.testing.assert_array_equal(batch.pixels[i], decode((folder / sample).read_bytes(), 16))
    assert (batches[2].pixels[2:] == 0).all()


def test_rows_of_a_later_row_block(loader: Loader, folder: Path) -> None:
    data = split(folder)
    (batch,) = results(loader.batches(data, range(6, 9)))
    assert batch.start == 6
    assert list(batch.ids) == data.ids[6:9].tolist()


def test_what_cannot_be_decoded_keeps_its_slot(loader: Loader, folder: Path) -> None:
    """Its neighbours are where they would be without it; never another image in its place."""
    data = split(folder)
    (folder / data.ids[5]).write_bytes(b"")
    (folder / data.ids[9]).write_bytes(b"not an image")
    good, bad, worse = results(loader.batches(data, range(10)))
    assert good.left_out == {}
    assert {row: (sample.id, sample.reason) for row, sample in bad.left_out.items()} == {5: (data.ids[5], "the file is empty")}
    assert list(worse.left_out) == [9]
    assert worse.left_out[9].id == data.ids[9]
    assert worse.left_out[9].reason
    assert (bad.pixels[1] == 0).all()
    for i in (0, 2, 3):
        np.testing.assert_array_equal(bad.pixels[i], decode((folder / data.ids[4 + i]).read_bytes(), 16))


def test_noise_is_that_of_each_sample(loader: Loader) -> None:
    noise = loader.noise(3, ["cat/1.png", "cat/2.png"], 90, (3, 16, 16), 1).result(timeout=60)
    assert noise.shape == (4, 3, 16, 16)
    assert noise.dtype == np.float32
    np.testing.assert_array_equal(noise[0], noise_for(3, "cat/1.png", 90, (3, 16, 16), draw=1))
    np.testing.assert_array_equal(noise[1], noise_for(3, "cat/2.png", 90, (3, 16, 16), draw=1))
    assert (noise[2:] == 0).all()


def test_an_io_error_is_retried(loader: Loader, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is away for a moment, as on a network file system, is nobody's bad sample."""
    monkeypatch.setattr(loading, "_RETRY_SECONDS", (0.05, 0.05, 20.0))
    data = split(folder)
    path = folder / data.ids[2]
    away = path.rename(folder.parent / "away.png")
    tries: list[bool] = []

    def read(row: int) -> bytes:
        if row == 2:
            tries.append(path.exists())
            if len(tries) == 3:
                away.rename(path)
        return data.read(row)

    (batch,) = results(loader.batches(SplitData(data.ids, data.labels, read), range(0, 4)))
    assert tries == [False] * 3
    assert batch.left_out == {}
    np.testing.assert_array_equal(batch.pixels[2], decode(path.read_bytes(), 16))


def test_an_io_error_that_stays_stops_the_run(loader: Loader, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_RETRY_SECONDS", (0.01, 0.01))
    data = split(folder)
    (folder / data.ids[2]).unlink()
    first, second = loader.batches(data, range(0, 8))
    with pytest.raises(ExtractError) as caught:
        first.result(timeout=60)
    message = str(caught.value)
    assert repr(data.ids[2]) in message
    assert "No such file" in message
    assert "2 retries" in message
    assert "not committed" in message
    assert second.result(timeout=60).left_out == {}


def test_reads_go_on_in_threads(folder: Path) -> None:
    """Two readers are inside a file at the same time."""
    data = split(folder)
    both = threading.Barrier(2, timeout=60)

    def read(row: int) -> bytes:
        if row in (0, 4):
            both.wait()
        return data.read(row)

    loader = Loader(16, 4, 2)
    batches = results(loader.batches(SplitData(data.ids, data.labels, read), range(0, 8)))
    loader.close()
    assert [len(batch.ids) for batch in batches] == [4, 4]


def test_closing_gives_up_what_was_not_started(folder: Path) -> None:
    data = split(folder)
    started, go_on = threading.Event(), threading.Event()

    def read(row: int) -> bytes:
        started.set()
        go_on.wait(60)
        return data.read(row)

    loader = Loader(16, 1, 1)
    futures = loader.batches(SplitData(data.ids, data.labels, read), range(0, 10))
    started.wait(60)
    threading.Timer(0.1, go_on.set).start()
    loader.close()
    assert futures[0].result(timeout=60).left_out == {}
    assert sum(future.cancelled() for future in futures) >= 8
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("diffssl-load")]
