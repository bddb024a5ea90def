"""The hot loop: images -> noise -> backbone -> pooling -> writer; beside a GPU, each stage is ahead of the next.

Order of work: a crop of a row block is decoded once, then passes through the backbone once per (timestep, draw), in
batches that never cross a row block and are always full, so that a feature does not depend on how the work was split.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..store import FeatureKey, FeatureStore, LeftOut, ThumbnailKey, UnitWriter
from .backbone import Backbone
from .loading import ImageBatch, Loader
from .plan import Work, still_missing
from .pooling import pool_map
from .precision import TF32, tf32
from .sources import SplitData
from .thumbnails import write_thumbnails
from .timings import Timings

_NOISE_AHEAD = 8
_NOISE_BYTES = 16 << 20  # where noise and passes take turns, and samples are small: fewer, longer turns
_WRITES_AHEAD = 8


@dataclass(frozen=True)
class Step:
    """One forward pass: a batch of a crop at a timestep with a draw, and the settings it is for."""

    images: ImageBatch
    timestep: int | None
    draw: int
    crop: int
    keys: Sequence[FeatureKey]
    ends_unit: bool


@dataclass(frozen=True)
class _Started:
    """A forward pass that the device is working on.

    Attributes:
        step: what it is.
        features: pooled, on the host once ``wait`` returned.
        wait: waits for the device.
    """

    step: Step
    features: Mapping[FeatureKey, Tensor]
    wait: Callable[[], None]


class Pipeline:
    """Carries out work.

    Args:
        store: with all arrays created.
        splits: images by split.
        backbone: on its device.
        seed: of the noise, None for clean images.
        threads: for decoding and noise.
        commit: called as ``commit(writer)`` when a unit is complete, in the writer's thread.
        progress: called with the number of images after each forward pass.
    """

    def __init__(
        self,
        store: FeatureStore,
        splits: Mapping[str, SplitData],
        backbone: Backbone,
        seed: int | None,
        threads: int,
        commit: Callable[[UnitWriter], object],
        progress: Callable[[int], object],
    ) -> None:
        self.timings = Timings()
        self._store = store
        self._splits = splits
        self._backbone = backbone
        self._seed = seed
        self._commit = commit
        self._progress = progress
        self._tf32 = store.header.identity.fields.get("compute_dtype") == TF32
        self._dtype = {2: torch.float16, 4: torch.float32}[np.dtype(store.header.dtype).itemsize]
        # A GPU works beside the loader's threads. A CPU's cores are all in the forward pass, where one that is taken
        # away makes the others wait: there they take turns.
        self._side_by_side = backbone.device.type != "cpu"
        self._loader = Loader(backbone.image_size, store.header.batch_size, threads, backbone.resize)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="diffssl-write")
        self._writes: deque[Future[object]] = deque()
        # Latents cost as much as a pass of the U-Net and are small: those of a row block stay for its other timesteps.
        self._latent = backbone.sample_shape[1:] != (backbone.image_size, backbone.image_size)
        self._latents: dict[int, Tensor] = {}

    def run(self, work: Sequence[Work]) -> None:
        """Do the work. Whatever ends it, commits that were started are finished and no others are made."""
        try:
            for item, batches in self._with_images(work):
                self._row_block(item, batches)
            self._settle(0)
        finally:
            self._loader.close()
            self._writer.shutdown(wait=True, cancel_futures=True)

    def _with_images(self, work: Sequence[Work]) -> Iterator[tuple[Work, list[Future[ImageBatch]]]]:
        """What is still missing of each row block, with its images; beside a GPU, those of the next one are on their way."""
        decoding: deque[list[Future[ImageBatch]]] = deque()
        for i, item in enumerate(work):
            if self._side_by_side:
                decoding += [self._decode(following) for following in work[i + len(decoding) : i + 2]]
            left = still_missing(self._store, item)
            if decoding:
                yield left, decoding.popleft()
            elif left.keys or left.thumbnails:
                batches = self._decode(item)
                for batch in batches:
                    self._wait(batch)
                yield left, batches
            else:
                yield left, []

    def _decode(self, item: Work) -> list[Future[ImageBatch]]:
        return self._loader.batches(self._splits[item.split], item.rows, item.crop, self._seed or 0)

    def _row_block(self, item: Work, batches: Sequence[Future[ImageBatch]]) -> None:
        if not item.keys and not item.thumbnails:  # committed by another process meanwhile
            self._progress(0)
            return
        ids: list[str] = self._splits[item.split].ids[item.rows.start : item.rows.stop].tolist()
        if item.thumbnails is not None:
            self._writes.append(self._writer.submit(self._keep_thumbnails, item, item.thumbnails, ids, batches))
            if not self._side_by_side or not item.keys:  # else images of many row blocks would wait for the writer
                self._settle(0)
        writers = {
            timestep: UnitWriter(self._store, item.split, item.row_block, keys, ids) for timestep, keys in item.keys.items()
        }
        self._latents.clear()
        pending: _Started | None = None
        for step, noise in self._with_noise(self._steps(item, batches)):
            with tf32(self._backbone.device, self._tf32):
                started = self._forward(step, noise)
            if pending is not None:  # the device works on this step while the last one is handed over
                self._hand_over(writers[pending.step.timestep], pending)
            pending = started
        if pending is not None:
            self._hand_over(writers[pending.step.timestep], pending)

    def _steps(self, item: Work, batches: Sequence[Future[ImageBatch]]) -> Iterator[Step]:
        """Forward passes of a row block, in order: timestep, batch, draw."""
        for timestep, keys in item.keys.items():
            draws = sorted({key.draw for key in keys})
            for i, batch in enumerate(batches):
                for draw in draws:
                    own = [key for key in keys if key.draw == draw]
                    last = i == len(batches) - 1 and draw == draws[-1]
                    yield Step(self._wait(batch), timestep, draw, item.crop, own, last)

    def _with_noise(self, steps: Iterator[Step]) -> Iterator[tuple[Step, NDArray[np.float32] | None]]:
        """Steps with their noise, drawn for several steps at once."""
        if self._seed is None:
            yield from ((step, None) for step in steps)
            return
        ahead = _NOISE_AHEAD
        if not self._side_by_side:
            batch_bytes = self._store.header.batch_size * math.prod(self._backbone.sample_shape) * np.dtype(np.float32).itemsize
            ahead = max(ahead, _NOISE_BYTES // batch_bytes)
        drawn: deque[tuple[Step, Future[NDArray[np.float32]]]] = deque()
        while True:
            if not drawn or self._side_by_side:
                for step in islice(steps, ahead - len(drawn)):
                    drawn.append((step, self._draw(step, self._seed)))
                if not self._side_by_side:
                    for _, noise in drawn:
                        self._wait(noise)
            if not drawn:
                return
            step, noise = drawn.popleft()
            yield step, self._wait(noise)

    def _draw(self, step: Step, seed: int) -> Future[NDArray[np.float32]]:
        if step.timestep is None:
            raise ValueError(f"settings without a timestep have no noise, got the seed {seed}")
        shape = self._backbone.sample_shape
        return self._loader.noise(seed, step.images.ids, step.timestep, shape, step.draw, step.crop)

    @torch.inference_mode()
    def _forward(self, step: Step, noise: NDArray[np.float32] | None) -> _Started:
        """Start the forward pass and the copy of its pooled features to the host."""
        started = time.perf_counter()
        x = self._encode(step.images)
        if noise is not None and step.timestep is not None:
            x = self._backbone.diffuse(x, self._to_device(noise), step.timestep)
        sizes: dict[int, dict[Any, FeatureKey]] = {}
        for key in step.keys:
            sizes.setdefault(key.block, {})[key.pool] = key
        host: dict[FeatureKey, Tensor] = {}
        for block, activation in self._backbone.features(x, step.timestep, sizes):
            pooled = pool_map(activation, sizes[block])
            for size, values in _to_host(pooled, self._dtype).items():
                host[sizes[block][size]] = values
        wait = _after_copies(self._backbone.device)
        self.timings.backbone += time.perf_counter() - started
        return _Started(step, host, wait)

    def _encode(self, images: ImageBatch) -> Tensor:
        """(batch_size, *sample_shape) float32 on the device: each image is encoded once a row block."""
        if images.start in self._latents:
            return self._latents[images.start]
        pixels = self._to_device(images.pixels)
        x = self._backbone.encode(pixels.permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1)
        if self._latent:
            self._latents[images.start] = x
        return x

    def _hand_over(self, writer: UnitWriter, done: _Started) -> None:
        """Give the features of a step to the writer's thread."""
        step = done.step
        started = time.perf_counter()
        done.wait()
        self.timings.backbone += time.perf_counter() - started
        n = len(step.images.ids)
        features = {key: value[:n].numpy() for key, value in done.features.items()}
        self._writes.append(self._writer.submit(self._write, writer, features, step.images.left_out, step.ends_unit))
        self._settle(_WRITES_AHEAD)
        self._progress(n)

    def _write(
        self,
        writer: UnitWriter,
        features: Mapping[FeatureKey, NDArray[Any]],
        left_out: Mapping[int, LeftOut],
        ends_unit: bool,
    ) -> None:
        writer.write(features, left_out)
        if ends_unit:
            self._commit(writer)

    def _keep_thumbnails(
        self, item: Work, key: ThumbnailKey, ids: Sequence[str], batches: Sequence[Future[ImageBatch]]
    ) -> None:
        """In the writer's thread, which has nothing to write before there are images."""
        self._commit(write_thumbnails(self._store, item, key, ids, batches))
        self._progress(len(item.rows))

    def _settle(self, most: int) -> None:
        """Wait until at most so many writes are open; an error of the writer surfaces here."""
        started = time.perf_counter()
        while self._writes and (len(self._writes) > most or self._writes[0].done()):
            self._writes.popleft().result()
        self.timings.write += time.perf_counter() - started

    def _wait(self, future: Future[Any]) -> Any:
        started = time.perf_counter()
        result = future.result()
        self.timings.decode += time.perf_counter() - started
        return result

    def _to_device(self, values: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(values)
        if self._backbone.device.type != "cuda":
            return tensor.to(self._backbone.device)
        return tensor.pin_memory().to(self._backbone.device, non_blocking=True)


def _to_host(pooled: Mapping[Any, Tensor], dtype: torch.dtype) -> dict[Any, Tensor]:
    """Copy the pools of a block to the host in the store's dtype; from a GPU with one cast and one copy, without waiting."""
    if next(iter(pooled.values())).device.type != "cuda":
        # Cast, then laid out: half the time of both at once.
        return {size: values.to("cpu", dtype, copy=True).contiguous() for size, values in pooled.items()}
    flat = torch.cat([values.flatten(1) for values in pooled.values()], dim=1).to(dtype)
    parts = torch.empty(flat.shape, dtype=dtype, pin_memory=True).copy_(flat, non_blocking=True)
    columns = torch.split(parts, [values[0].numel() for values in pooled.values()], dim=1)
    return {size: part.reshape(values.shape) for (size, values), part in zip(pooled.items(), columns, strict=True)}


def _after_copies(device: torch.device) -> Callable[[], None]:
    """A function that waits for everything queued on the device until now."""
    if device.type != "cuda":
        return lambda: None
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event.synchronize
