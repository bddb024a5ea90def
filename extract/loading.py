"""Decoded images and their noise, prepared in threads."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..store import LeftOut
from .crops import crop_for
from .errors import ExtractError
from .images import GUIDED, Resize, UndecodableImage, decode
from .noise import noise_batch
from .sources import SplitData

_RETRY_SECONDS = (0.2, 1.0, 5.0)
_SMALL = 128  # side of images, in pixels


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


class Loader:
    """Decodes, and draws noise, in threads.

    Args:
        image_size: side of the images.
        batch_size: of every batch.
        threads: number of threads for each of the two.
        resize: how images are resized.
    """

    def __init__(self, image_size: int, batch_size: int, threads: int, resize: Resize = GUIDED) -> None:
        self._image_size = image_size
        self._resize = resize
        self._batch_size = batch_size
        # Small images are decoded in so many short calls that two threads wait for each other's interpreter: one is
        # twice as fast. Others read ahead of it, since storage may answer slowly.
        self._small = image_size < _SMALL
        self._images = ThreadPoolExecutor(1 if self._small else threads, thread_name_prefix="diffssl-load")
        self._files = ThreadPoolExecutor(threads, thread_name_prefix="diffssl-load")
        # Of its own: noise is wanted now, images of the next row block are in no hurry.
        self._noise = ThreadPoolExecutor(threads, thread_name_prefix="diffssl-load")

    def batches(self, data: SplitData, rows: range, crop: int = 0, seed: int = 0) -> list[Future[ImageBatch]]:
        """Start reading and decoding a crop of rows, which are one row block, in batches."""
        starts = range(rows.start, rows.stop, self._batch_size)
        parts = [range(start, min(start + self._batch_size, rows.stop)) for start in starts]
        read = [self._files.submit(_read_all, data, part) if self._small else None for part in parts]
        return [
            self._images.submit(self._decode, data, part, crop, seed, contents)
            for part, contents in zip(parts, read, strict=True)
        ]

    def noise(
        self, seed: int, ids: Sequence[str], timestep: int, shape: Sequence[int], draw: int, crop: int = 0
    ) -> Future[NDArray[np.float32]]:
        """Start drawing the noise of a batch: (batch_size, *shape) float32, zero where there is no image."""
        return self._noise.submit(self._draw, seed, ids, timestep, shape, draw, crop)

    def close(self) -> None:
        """Give up what was not started and wait for what was."""
        for pool in (self._images, self._files, self._noise):
            pool.shutdown(wait=False, cancel_futures=True)
        for pool in (self._files, self._images, self._noise):
            pool.shutdown(wait=True)

    def _draw(
        self, seed: int, ids: Sequence[str], timestep: int, shape: Sequence[int], draw: int, crop: int
    ) -> NDArray[np.float32]:
        noise = noise_batch(seed, ids, timestep, shape, draw, crop)
        missing = self._batch_size - len(ids)
        return np.concatenate([noise, np.zeros((missing, *shape), dtype=np.float32)]) if missing else noise

    def _decode(self, data: SplitData, rows: range, crop: int, seed: int, read: Future[list[bytes]] | None) -> ImageBatch:
        contents = iter(read.result()) if read is not None else (_read(data, row) for row in rows)
        pixels = np.zeros((self._batch_size, self._image_size, self._image_size, 3), dtype=np.uint8)
        left_out: dict[int, LeftOut] = {}
        for i, (row, content) in enumerate(zip(rows, contents, strict=True)):
            place = crop_for(seed, data.ids[row], crop, self._image_size)
            try:
                pixels[i] = decode(content, self._image_size, place, self._resize)
            except UndecodableImage as error:
                left_out[row] = LeftOut(data.ids[row], str(error))
        return ImageBatch(rows.start, list(data.ids[rows.start : rows.stop]), pixels, left_out)


def _read_all(data: SplitData, rows: range) -> list[bytes]:
    return [_read(data, row) for row in rows]


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
