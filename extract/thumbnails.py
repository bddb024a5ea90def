"""Thumbnails: the pixels that the backbone sees at crop 0, made smaller and kept. No torch here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..store import FeatureStore, ThumbnailKey, UnitWriter
from .loading import ImageBatch, Loader
from .plan import Work, still_missing
from .sources import SplitData
from .timings import Timings


def shrink(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Resize by Pillow's Lanczos filter.

    Args:
        pixels: (n, S, S, 3) uint8.
        side: N, at most S.

    Returns:
        (n, N, N, 3) uint8; the pixels themselves where N is S.
    """
    if side > pixels.shape[1]:
        raise ValueError(f"thumbnails are never larger than the images, got {side} for {pixels.shape[1]} pixels")
    if side == pixels.shape[1]:
        return pixels
    small = [Image.fromarray(image).resize((side, side), resample=Image.Resampling.LANCZOS) for image in pixels]
    return np.stack([np.asarray(image) for image in small])


def write_thumbnails(
    store: FeatureStore, work: Work, key: ThumbnailKey, ids: Sequence[str], batches: Iterable[Future[ImageBatch]]
) -> UnitWriter:
    """Write the thumbnails of a row block; the writer is complete and not committed.

    Args:
        store: with the array created.
        work: whose row block.
        key: of the thumbnails.
        ids: of the row block's rows.
        batches: its images at crop 0, in order.
    """
    writer = UnitWriter(store, work.split, work.row_block, [key], ids)
    for batch in batches:
        images = batch.result()
        writer.write({key: shrink(images.pixels[: len(images.ids)], key.side)}, images.left_out)
    return writer


def run_without_backbone(
    store: FeatureStore,
    splits: Mapping[str, SplitData],
    loader: Loader,
    work: Sequence[Work],
    commit: Callable[[UnitWriter], object],
    progress: Callable[[int], object],
) -> Timings:
    """Do work of which thumbnails alone are missing; return where the time went.

    Args:
        store: with all arrays created.
        splits: images by split.
        loader: of images; it is closed.
        work: to do.
        commit: called as ``commit(writer)`` when a unit is complete.
        progress: called with the number of images after each row block.
    """
    timings = Timings()
    try:
        for item in work:
            left = still_missing(store, item)
            if left.thumbnails is not None:  # else committed by another process meanwhile
                started = time.perf_counter()
                data = splits[item.split]
                batches = loader.batches(data, item.rows)
                for batch in batches:
                    batch.result()
                timings.decode += time.perf_counter() - started
                ids = data.ids[item.rows.start : item.rows.stop].tolist()
                commit(write_thumbnails(store, left, left.thumbnails, ids, batches))
                timings.write += time.perf_counter() - started
            progress(len(item.rows))
    finally:
        loader.close()
    timings.write -= timings.decode
    return timings
