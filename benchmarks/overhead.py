"""What the pipeline costs over the bare forward passes, and where the time of a run goes.

    python benchmarks/overhead.py [--repeats 6] [--memory-format contiguous]

Times are of whole extractions of the bundled digits (decoding, noise, pooling, checksums, fsync, commits) against as many
forward passes over images already in memory, in turn, so that a drifting machine hits both alike.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import torch
from diffssl.extract.backbone import Backbone
from diffssl.extract.job import Job, compute, load_backbone, open_store, prepare
from diffssl.extract.spec import ExtractSpec
from diffssl.store.storage import LocalStorage

BATCH = 64
SLOW = 100e6  # bytes a second
ROW_BLOCK = 2048  # as chosen for 131,072 images and more: what a file costs is shared by as many rows as in a real run
TIMESTEPS = [10, 90]
IMAGES = 1797  # all digits; the last of the 29 batches is padded, and bare passes are as many


def job_for(store: Path, blocks: range | tuple[int, ...], pools: tuple[int | str, ...], memory_format: str | None) -> Job:
    wanted: dict[int, set[int | str]] = {block: set() for block in blocks}
    spec = ExtractSpec(
        blocks=wanted,
        timesteps=TIMESTEPS,
        pools=pools,
        store=store,
        batch_size=BATCH,
        row_block=ROW_BLOCK,
        memory_format=memory_format,
    )
    return prepare(spec, lambda _: None)


@torch.inference_mode()
def bare_seconds(backbone: Backbone, deepest: int) -> float:
    x = torch.randn(BATCH, *backbone.sample_shape)
    started = time.perf_counter()
    for timestep in TIMESTEPS:
        for _ in range(-(-IMAGES // BATCH)):
            for _ in backbone.features(x, timestep, [deepest]):
                pass
    return time.perf_counter() - started


def extraction_seconds(
    folder: Path,
    backbone: Backbone,
    blocks: range | tuple[int, ...],
    pools: tuple[int | str, ...],
    memory_format: str | None,
) -> float:
    """Seconds of an extraction into a new store, which is left there: ext4 is slow to create files where some were
    deleted a moment ago."""
    job = job_for(folder / f"{uuid.uuid4().hex}.zarr", blocks, pools, memory_format)
    store = open_store(job, backbone)
    started = time.perf_counter()
    compute(job, store, backbone, lambda _: None)
    return time.perf_counter() - started


def pipeline(folder: Path, repeats: int, memory_format: str | None) -> None:
    backbone = load_backbone(job_for(folder / "none.zarr", (24,), (1,), memory_format))
    bare_seconds(backbone, 24)
    extraction_seconds(folder, backbone, (18, 24), (1, 2), memory_format)
    small, large, bare = [], [], []
    for _ in range(repeats):
        bare.append(bare_seconds(backbone, 24))
        small.append(extraction_seconds(folder, backbone, (18, 24), (1, 2), memory_format))
        large.append(extraction_seconds(folder, backbone, range(1, 25), (1, 2), memory_format))
        print(
            f"  bare {bare[-1]:.3f} s, 2 blocks x 2 pools {small[-1]:.3f} s, 24 blocks x 2 pools {large[-1]:.3f} s", flush=True
        )
    over, more = sum(small) / sum(bare), sum(large) / sum(small)  # of totals: single rounds swing by a fifth
    milliseconds = 1000 * median(bare) / IMAGES / len(TIMESTEPS)
    print(
        f"bundled model to block 24, {IMAGES} images x {len(TIMESTEPS)} timesteps, batch {BATCH}: {milliseconds:.2f} ms a pass"
    )
    print(f"2 blocks x 2 pools / bare forward passes: {over:.3f}")
    print(f"24 blocks x 2 pools / 2 blocks x 2 pools: {more:.3f}")


def stages(folder: Path, memory_format: str | None) -> None:
    """Where the time of a run goes, on this disk and on storage that takes 100 MB/s."""
    replace = LocalStorage.replace

    def slow(storage: LocalStorage, files: Mapping[str, Sequence[bytes | memoryview]]) -> None:
        started = time.perf_counter()
        replace(storage, files)
        due = sum(memoryview(part).nbytes for parts in files.values() for part in parts) / SLOW
        time.sleep(max(0.0, started + due - time.perf_counter()))

    backbone = load_backbone(job_for(folder / "none.zarr", (24,), (1,), memory_format))
    for blocks, pools in (((18, 24), (1, 2)), (range(1, 25), (1, 2)), (range(1, 25), ("full",))):
        for name, method in (("this disk", replace), ("100 MB/s", slow)):
            job = job_for(folder / f"{uuid.uuid4().hex}.zarr", blocks, pools, memory_format)
            store = open_store(job, backbone)
            LocalStorage.replace = method  # type: ignore[method-assign, assignment]
            started = time.perf_counter()
            timings = compute(job, store, backbone, lambda _: None)
            seconds = time.perf_counter() - started
            LocalStorage.replace = replace  # type: ignore[method-assign]
            rate = job.plan.bytes / seconds / 1e6
            print(f"{len(blocks)} blocks, pools {pools}, {name}: {timings}; {rate:.1f} MB/s in {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument(
        "--memory-format", choices=["channels_last", "contiguous"], help="contiguous: guided_diffusion's modules"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        stages(Path(name), options.memory_format)
        pipeline(Path(name), options.repeats, options.memory_format)
