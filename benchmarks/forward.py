"""The forward pass: made faster against guided_diffusion's own modules, and stopped early against run to the end.

    python benchmarks/forward.py [--model adm256-uncond] [--batch 1] [--block 24] [--rounds 5] [--threads 1] [--memory]

Weights of published models are random, as times and memory do not depend on them. Variants take turns within each round,
and ratios are of medians, in seconds of the processor: with one thread, other programs on the machine disturb them little.
``--memory`` measures the peak of resident memory of each way to the features of a block instead, each in a fresh process.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffssl.extract.adm import ADM, build_unet
from diffssl.extract.model import CHANNELS_LAST, CONTIGUOUS
from diffssl.extract.weights import read_state
from diffssl.extract.zoo import BUNDLED, find_model
from torch import Tensor, nn

TIMESTEP = 90


def unet(name: str) -> tuple[nn.Module, Mapping[str, Any]]:
    """guided_diffusion's U-Net; of unit gain with random weights."""
    source = find_model(name, None, None)
    model = build_unet(source.config).to_empty(device="cpu").requires_grad_(False).eval()
    if name == BUNDLED:
        model.load_state_dict(read_state(source.weights))
        return model, source.config
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
        else:
            parameter.uniform_(0.5, 1, generator=generator)
    return model, source.config


def early(adm: ADM, x: Tensor, block: int) -> Tensor:
    """As diffssl does it."""
    ((_, found),) = adm.features(x, TIMESTEP, [block])
    assert isinstance(found, Tensor)
    return found


def full(model: nn.Module, x: Tensor) -> Tensor:
    """The whole forward pass, for comparison; keeps nothing."""
    output: Tensor = model(x, torch.full((len(x),), TIMESTEP))
    return output


def hooked(model: nn.Module, x: Tensor, block: int) -> dict[int, Tensor]:
    """The usual way: forward hooks that keep the output of every block up to one, and the whole forward pass."""
    found: dict[int, Tensor] = {}
    modules = [*model.input_blocks, model.middle_block, *model.output_blocks]  # type: ignore[misc]
    handles = [
        module.register_forward_hook(lambda _m, _i, output, number=number: found.update({number: output}))
        for number, module in enumerate(modules[:block], start=1)
    ]
    full(model, x)
    for handle in handles:
        handle.remove()
    return found


def ways(name: str, block: int) -> dict[str, Callable[[Tensor], Any]]:
    """Each way to the features, by name."""
    model, config = unet(name)
    own, fast = ADM(model, config), ADM(unet(name)[0], config, memory_format=CHANNELS_LAST)
    return {
        "early, fast": lambda x: early(fast, x, block),
        "early, own modules": lambda x: early(own, x, block),
        "full, own modules": lambda x: full(model, x),
        "full with hooks": lambda x: hooked(model, x, block),
    }


@torch.inference_mode()
def times(options: argparse.Namespace) -> None:
    measured = ways(options.model, options.block)
    size = find_model(options.model, None, None).image_size
    x = torch.randn(options.batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    ours, theirs = measured["early, fast"](x), measured["early, own modules"](x)  # warm up
    print(f"largest difference / largest magnitude: {float((ours - theirs).abs().max() / theirs.abs().max()):.1e}", flush=True)
    seconds: dict[str, list[float]] = {name: [] for name in measured}
    for _ in range(options.rounds):
        for name, run in measured.items():
            started = time.process_time()
            run(x)
            seconds[name].append(time.process_time() - started)
    base = median(seconds["early, own modules"])
    print(f"{options.model} to block {options.block}, batch {options.batch}, {torch.get_num_threads()} threads")
    for name, values in seconds.items():
        print(f"  {name:<20} {median(values):8.3f} s   own modules / this: {base / median(values):.2f}", flush=True)


@torch.inference_mode()
def peak(options: argparse.Namespace, way: str) -> None:
    """In a process of its own: the peak of its resident memory, and what of it was there before the forward pass."""
    torch.set_num_threads(options.threads)
    model, config = unet(options.model)
    if way.startswith("early"):
        adm = ADM(model, config, memory_format=CHANNELS_LAST if way == "early, fast" else CONTIGUOUS)
        run: Callable[[Tensor], Any] = lambda x: early(adm, x, options.block)  # noqa: E731
    else:
        run = (lambda x: hooked(model, x, options.block)) if "hooks" in way else lambda x: full(model, x)
    size = int(config["image_size"])
    x = torch.zeros(options.batch, 3, size, size)
    if way == "early, fast":
        run(x)  # weights are laid out
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    kept = run(x)
    most = _status("VmHWM")
    print(f"  {way:<20} before {before:6.0f} MiB, peak {most:6.0f} MiB: {most - before:6.0f} more", flush=True)
    del kept


def _status(name: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def memory(options: argparse.Namespace) -> None:
    print(f"{options.model} to block {options.block}, batch {options.batch}: resident memory", flush=True)
    for way in ("early, fast", "early, own modules", "full, own modules", "full with hooks"):
        process = multiprocessing.get_context("spawn").Process(target=peak, args=(options, way))
        process.start()
        process.join()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="adm256-uncond")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--block", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    memory(options) if options.memory else times(options)
