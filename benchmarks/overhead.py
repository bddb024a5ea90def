"""What the pipeline costs over the bare forward passes, and where the time of a run goes.

    python benchmarks/overhead.py [--repeats 6] [--memory-format contiguous] [--timesteps 10,30,50,90,150,300,500]
    python benchmarks/overhead.py --model adm256-uncond --images 4 --batch 4 --timesteps 90

Times are of whole extractions of the bundled digits (decoding, noise, pooling, checksums, fsync, commits) against as many
forward passes over images already in memory, in turn, so that a drifting machine hits both alike; on the CPU. Weights of
published models are random, as times do not depend on them; where their time goes is not asked, as it would take hours.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from diffssl.extract.adm import ADM
from diffssl.extract.backbone import Backbone
from diffssl.extract.job import Job, compute, open_store, prepare
from diffssl.extract.model import CHANNELS_LAST
from diffssl.extract.spec import ExtractSpec
from diffssl.extract.zoo import BUNDLED
from diffssl.store.storage import LocalStorage
from forward import unet

SLOW = 100e6  # bytes a second
DIGITS = 1797

Blocks = range | tuple[int, ...]
Pools = tuple[int | str, ...]


@dataclass(frozen=True)
class Run:
    """What is measured: so many digits at timesteps, in batches of which the last is padded."""

    folder: Path
    model: str
    images: int
    batch: int
    timesteps: list[int]
    memory_format: str | None

    def job(self, blocks: Blocks, pools: Pools) -> Job:
        """An extraction into a new store, which is left there: ext4 is slow to create files where some were deleted a
        moment ago."""
        wanted: dict[int, set[int | str]] = {block: set() for block in blocks}
        spec = ExtractSpec(
            blocks=wanted,
            timesteps=self.timesteps,
            pools=pools,
            store=self.folder / f"{uuid.uuid4().hex}.zarr",
            model=self.model,
            batch_size=self.batch,
            row_block=1 << (self.images - 1).bit_length(),  # one for all: 2,048, as chosen for 131,072 images and more
            memory_format=self.memory_format,
            limit=self.images,
        )
        return prepare(spec, lambda _: None, fetch=False)

    def backbone(self) -> Backbone:
        network, config = unet(self.model)
        return ADM(network, config, memory_format=self.memory_format or CHANNELS_LAST)

    @torch.inference_mode()
    def bare_seconds(self, backbone: Backbone, deepest: int) -> float:
        x = torch.randn(self.batch, *backbone.sample_shape)
        started = time.perf_counter()
        for timestep in self.timesteps:
            for _ in range(-(-self.images // self.batch)):
                for _ in backbone.features(x, timestep, [deepest]):
                    pass
        return time.perf_counter() - started

    def extraction_seconds(self, backbone: Backbone, blocks: Blocks, pools: Pools) -> float:
        job = self.job(blocks, pools)
        store = open_store(job, backbone)
        started = time.perf_counter()
        compute(job, store, backbone, lambda _: None)
        return time.perf_counter() - started


def pipeline(run: Run, repeats: int) -> None:
    backbone = run.backbone()
    run.bare_seconds(backbone, 24)
    run.extraction_seconds(backbone, (18, 24), (1, 2))
    small, large, bare = [], [], []
    for _ in range(repeats):
        bare.append(run.bare_seconds(backbone, 24))
        small.append(run.extraction_seconds(backbone, (18, 24), (1, 2)))
        large.append(run.extraction_seconds(backbone, range(1, 25), (1, 2)))
        print(
            f"  bare {bare[-1]:.3f} s, 2 blocks x 2 pools {small[-1]:.3f} s, 24 blocks x 2 pools {large[-1]:.3f} s", flush=True
        )
    over, more = sum(small) / sum(bare), sum(large) / sum(small)  # of totals: single rounds swing by a fifth
    milliseconds = 1000 * median(bare) / run.images / len(run.timesteps)
    print(
        f"{run.model} to block 24, {run.images} images x {len(run.timesteps)} timesteps, batch {run.batch}: "
        f"{milliseconds:.2f} ms a pass"
    )
    print(f"2 blocks x 2 pools / bare forward passes: {over:.3f}")
    print(f"24 blocks x 2 pools / 2 blocks x 2 pools: {more:.3f}")


def stages(run: Run) -> None:
    """Where the time of a run goes, on this disk and on storage that takes 100 MB/s."""
    replace = LocalStorage.replace

    def slow(storage: LocalStorage, files: Mapping[str, Sequence[bytes | memoryview]]) -> None:
        started = time.perf_counter()
        replace(storage, files)
        due = sum(memoryview(part).nbytes for parts in files.values() for part in parts) / SLOW
        time.sleep(max(0.0, started + due - time.perf_counter()))

    backbone = run.backbone()
    for blocks, pools in (((18, 24), (1, 2)), (range(1, 25), (1, 2)), (range(1, 25), ("full",))):
        for name, method in (("this disk", replace), ("100 MB/s", slow)):
            job = run.job(blocks, pools)
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
    parser.add_argument("--model", default=BUNDLED)
    parser.add_argument("--images", type=int, default=DIGITS)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--timesteps", type=lambda text: [int(part) for part in text.split(",")], default=[10, 90])
    options = parser.parse_args()
    if not 1 <= options.images <= DIGITS:
        parser.error(f"--images is from 1 to {DIGITS}, as many digits as there are")
    with tempfile.TemporaryDirectory() as name:
        run = Run(Path(name), options.model, options.images, options.batch, options.timesteps, options.memory_format)
        if options.model == BUNDLED:
            stages(run)
        pipeline(run, options.repeats)
