"""Decoded images and their noise, prepared in threads while the backbone works on earlier ones."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..store import LeftOut
from .errors import ExtractError
from .images import UndecodableImage, decode
from .noise import noise_batch
from .sources import SplitData

_RETRY_SECONDS = (0.2, 1.0, 5.0)


@dataclass(frozen=True)
class ImageBatch:
    """Decoded images of consecutive rows, padded to the batch size.

    Attributes:
        start: first row.
        ids: of the rows; fewer than images in the last batch of a row block.
        pixels: (batch_size, S, S, 3) uint8; zero where an image is missing.
        left_out: row -> what could not be decoded.
    """

    start: int
    ids: Sequence[str]
    pixels: NDArray[np.uint8]
    left_out: Mapping[int, LeftOut]


@dataclass(frozen=True)
class FileBatch:
    """Files of consecutive rows, as they are on disk."""

    data: SplitData
    rows: range
    contents: Sequence[bytes]


class Loader:
    """Reads, decodes and draws noise in threads.

    Args:
        image_size: side of the images.
        batch_size: of every batch.
        threads: number of threads.
    """

    def __init__(self, image_size: int, batch_size: int, threads: int) -> None:
        self._image_size = image_size
        self._batch_size = batch_size
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="diffssl-load")

    def read(self, data: SplitData, rows: range) -> list[Future[FileBatch]]:
        """Start reading the files of rows, which are one row block, in batches."""
        starts = range(rows.start, rows.stop, self._batch_size)
        return [
            self._pool.submit(_read_batch, data, range(start, min(start + self._batch_size, rows.stop))) for start in starts
        ]

    def decode(self, files: Sequence[Future[FileBatch]]) -> list[Future[ImageBatch]]:
        """Start decoding files whose reading was started."""
        return [self._pool.submit(self._decode, batch) for batch in files]

    def noise(
        self, seed: int, ids: Sequence[str], timestep: int, shape: Sequence[int], draw: int
    ) -> Future[NDArray[np.float32]]:
        """Start drawing the noise of a batch: (batch_size, *shape) float32, zero where there is no image."""
        return self._pool.submit(self._draw, seed, ids, timestep, shape, draw)

    def close(self) -> None:
        """Give up what was not started and wait for what was."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _draw(self, seed: int, ids: Sequence[str], timestep: int, shape: Sequence[int], draw: int) -> NDArray[np.float32]:
        noise = np.zeros((self._batch_size, *shape), dtype=np.float32)
        noise[: len(ids)] = noise_batch(seed, ids, timestep, shape, draw)
        return noise

    def _decode(self, files: Future[FileBatch]) -> ImageBatch:
        batch = files.result()
        data, rows = batch.data, batch.rows
        pixels = np.zeros((self._batch_size, self._image_size, self._image_size, 3), dtype=np.uint8)
        left_out: dict[int, LeftOut] = {}
        for i, (row, content) in enumerate(zip(rows, batch.contents, strict=True)):
            try:
                pixels[i] = decode(content, self._image_size)
            except UndecodableImage as error:
                left_out[row] = LeftOut(data.ids[row], str(error))
        return ImageBatch(rows.start, list(data.ids[rows.start : rows.stop]), pixels, left_out)


def _read_batch(data: SplitData, rows: range) -> FileBatch:
    return FileBatch(data, rows, [_read(data, row) for row in rows])


def _read(data: SplitData, row: int) -> bytes:
    """Read an image's file. An I/O error says nothing about the sample: retried, then the run stops."""
    for pause in _RETRY_SECONDS:
        try:
            return data.read(row)
        except OSError:
            time.sleep(pause)
    try:
        return data.read(row)
    except OSError as error:
        raise ExtractError(
            f"the image {data.ids[row]!r} cannot be read ({error}), after {len(_RETRY_SECONDS)} retries; its row block is "
            "not committed. When the storage works again, the same command goes on"
        ) from error
