"""What the pipeline costs over the bare forward passes, and what stopping early saves.

    python benchmarks/overhead.py [--images 512] [--repeats 24]

Times are of whole extractions (decoding, noise, pooling, checksums, fsync, commits) against forward passes over the
same images already in memory, in turn, so that a drifting machine hits both alike.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import uuid
from pathlib import Path
from statistics import median

import torch
from diffssl.extract.adm import ADM, build_unet
from diffssl.extract.backbone import Backbone
from diffssl.extract.job import Job, compute, load_backbone, open_store, prepare
from diffssl.extract.spec import ExtractSpec
from diffssl.extract.zoo import model_config

BATCH = 32
ROW_BLOCK = 512  # as chosen for 32,768 images and more: what a file costs is shared by as many rows as in a real run
TIMESTEPS = [10, 90]


def job_for(store: Path, blocks: range | tuple[int, ...], pools: tuple[int, ...], images: int) -> Job:
    wanted: dict[int, set[int | str]] = {block: set() for block in blocks}
    spec = ExtractSpec(
        blocks=wanted,
        timesteps=TIMESTEPS,
        pools=pools,
        store=store,
        limit=images,
        batch_size=BATCH,
        row_block=ROW_BLOCK,
    )
    return prepare(spec, lambda _: None)


@torch.inference_mode()
def bare_seconds(backbone: Backbone, deepest: int, images: int) -> float:
    x = torch.randn(BATCH, *backbone.sample_shape)
    started = time.perf_counter()
    for timestep in TIMESTEPS:
        for _ in range(-(-images // BATCH)):
            for _ in backbone.features(x, timestep, [deepest]):
                pass
    return time.perf_counter() - started


def extraction_seconds(
    folder: Path, backbone: Backbone, blocks: range | tuple[int, ...], pools: tuple[int, ...], images: int
) -> float:
    """Seconds of an extraction into a new store, which is left there: ext4 is slow to create files where some were
    deleted a moment ago."""
    job = job_for(folder / f"{uuid.uuid4().hex}.zarr", blocks, pools, images)
    store = open_store(job, backbone)
    started = time.perf_counter()
    compute(job, store, backbone, lambda _: None)
    return time.perf_counter() - started


def pipeline(folder: Path, images: int, repeats: int) -> None:
    backbone = load_backbone(job_for(folder / "none.zarr", (24,), (1,), images))
    bare_seconds(backbone, 24, images)
    extraction_seconds(folder, backbone, (18, 24), (1, 2), images)
    small, large, bare = [], [], []
    for _ in range(repeats):
        bare.append(bare_seconds(backbone, 24, images))
        small.append(extraction_seconds(folder, backbone, (18, 24), (1, 2), images))
        large.append(extraction_seconds(folder, backbone, range(1, 25), (1, 2), images))
        print(
            f"  bare {bare[-1]:.3f} s, 2 blocks x 2 pools {small[-1]:.3f} s, 24 blocks x 2 pools {large[-1]:.3f} s", flush=True
        )
    over, more = sum(small) / sum(bare), sum(large) / sum(small)  # of totals: single rounds swing by a fifth
    milliseconds = 1000 * median(bare) / images / len(TIMESTEPS)
    print(
        f"bundled model to block 24, {images} images x {len(TIMESTEPS)} timesteps, batch {BATCH}: {milliseconds:.2f} ms a pass"
    )
    print(f"2 blocks x 2 pools / bare forward passes: {over:.3f}")
    print(f"24 blocks x 2 pools / 2 blocks x 2 pools: {more:.3f}")


@torch.inference_mode()
def early_exit(repeats: int) -> None:
    config = model_config("adm256-uncond")
    model = build_unet(config).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
    model.requires_grad_(False).eval()
    backbone = ADM(model, config)
    x = torch.randn(1, *backbone.sample_shape, generator=generator)
    early, full = [], []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        for _ in backbone.features(x, 90, [24]):
            pass
        early.append(time.perf_counter() - started)
        started = time.perf_counter()
        model(x, torch.tensor([90]))
        full.append(time.perf_counter() - started)
        print(f"  to block 24 {early[-1]:.2f} s, full {full[-1]:.2f} s", flush=True)
    ratio = median(b / a for a, b in zip(early[1:], full[1:], strict=True))
    print(f"256-pixel ADM, batch 1: full forward pass / to block 24: {ratio:.2f} (FLOPs: {1 / backbone.blocks[23].share:.2f})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=24)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        pipeline(Path(name), options.images, options.repeats)
    early_exit(min(3, options.repeats))
