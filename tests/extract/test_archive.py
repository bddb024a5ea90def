from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from diffssl.extract import DataError
from diffssl.extract.archive import OpenFiles, open_archives
from diffssl.extract.stamps import stamps_of


@pytest.fixture
def blobs(tmp_path: Path) -> Callable[[int], list[Path]]:
    """Files of 4,000 random bytes."""

    def make(count: int) -> list[Path]:
        paths = [tmp_path / f"{i}.bin" for i in range(count)]
        for i, path in enumerate(paths):
            path.write_bytes(np.random.default_rng(i).bytes(4000))
        return paths

    return make


def opened(paths: list[Path], limit: int = 128) -> OpenFiles:
    names = [str(path) for path in paths]
    return OpenFiles(names, stamps_of(names), limit)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_an_archive_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.tar: cannot be read"):
        open_archives([str(tmp_path / "nowhere.tar")])


def test_few_files_are_open(blobs: Callable[[int], list[Path]]) -> None:
    paths = blobs(30)
    before = descriptors()
    files = opened(paths, limit=4)
    for number, path in enumerate(paths):
        assert files.read(number, 10, 20) == path.read_bytes()[10:30]
        assert descriptors() - before <= 4
    assert files.read(0, 0, 4000) == paths[0].read_bytes()
    del files
    assert descriptors() == before


def test_one_descriptor_serves_all_threads(blobs: Callable[[int], list[Path]]) -> None:
    """And no thread reads from a descriptor that another has closed: more threads than files may be open."""
    paths = blobs(12)
    contents = [path.read_bytes() for path in paths]
    before = descriptors()
    files = opened(paths, limit=2)
    rng = np.random.default_rng(0)
    pieces = [(int(rng.integers(12)), int(rng.integers(3000)), int(rng.integers(1000))) for _ in range(4000)]
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda piece: files.read(*piece), pieces))
    assert read == [contents[number][offset : offset + size] for number, offset, size in pieces]
    assert descriptors() - before <= 8


def test_a_file_that_was_replaced(blobs: Callable[[int], list[Path]]) -> None:
    """Offsets of one archive mean nothing in another."""
    one, two, three = blobs(3)
    files = opened([one, two], limit=1)
    three.replace(one)
    with pytest.raises(OSError, match=r"0\.bin: was replaced or changed after it was listed"):
        files.read(0, 0, 10)
    assert len(files.read(1, 0, 10)) == 10


def test_a_file_that_was_cut(blobs: Callable[[int], list[Path]]) -> None:
    (path,) = blobs(1)
    files = opened([path])
    assert files.read(0, 0, 100) == path.read_bytes()[:100]
    os.truncate(path, 100)
    with pytest.raises(OSError, match="was cut short"):
        files.read(0, 50, 100)
