"""Train a small unconditional ADM on any source of images, with guided_diffusion's own loss.

    python studies/train_backbone.py --data cifar10 --split train --out my_adm [--steps 4233]

Writes ``my_adm.safetensors`` (moving average of the weights) and ``my_adm.json`` (configuration and training), for
``diffssl-extract --checkpoint my_adm.safetensors --model-config my_adm.json``. Without ``--model-config`` the network is
that of the bundled model, which was trained with these defaults.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from diffssl.extract.images import decode
from diffssl.extract.settings import pick_device
from diffssl.extract.sources import SplitData, load_data
from diffssl.extract.zoo import DEFAULTS, find_model
from diffssl.store.progress import progress_bar
from guided_diffusion.script_util import create_model_and_diffusion
from torch import Tensor

_DECODERS = 4
_LOGGED = 100  # steps of which the last line gives the mean loss


@dataclass(frozen=True)
class Training:
    """How to train; the defaults are those of the bundled model."""

    steps: int = 4233
    batch_size: int = 64
    learning_rate: float = 4e-4
    betas: tuple[float, float] = (0.9, 0.99)
    warmup: int = 200
    max_gradient_norm: float = 1.0
    ema_decay: float = 0.9995
    seed: int = 0


def train(
    data: SplitData, config: Mapping[str, Any], options: Training, device: torch.device, progress: Callable[[float], object]
) -> tuple[dict[str, Tensor], list[float]]:
    """Train from scratch, with random horizontal flips and timesteps drawn uniformly.

    Args:
        data: images; their labels are not used.
        config: guided_diffusion's flags.
        options: how.
        device: where.
        progress: called with the loss of each step.

    Returns:
        The moving average of the weights, float32 on the CPU, and the loss of each step.
    """
    with torch.random.fork_rng():  # guided_diffusion initialises from the global generator
        torch.manual_seed(options.seed)
        model, diffusion = create_model_and_diffusion(**{**config, "use_fp16": False})
    model.to(device).train()
    ema = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, betas=options.betas, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, options))
    generator = torch.Generator().manual_seed(options.seed)
    losses: list[float] = []
    for x in _batches(data, int(config["image_size"]), options):
        timesteps = torch.randint(diffusion.num_timesteps, (len(x),), generator=generator).to(device)
        noise = torch.randn(x.shape, generator=generator).to(device)
        loss = diffusion.training_losses(model, x.to(device), timesteps, noise=noise)["loss"].mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), options.max_gradient_norm)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            for name, value in model.state_dict().items():
                ema[name].lerp_(value, 1 - options.ema_decay)
        losses.append(float(loss.detach()))
        progress(losses[-1])
    return {name: value.cpu().contiguous() for name, value in ema.items()}, losses


def _rate(step: int, options: Training) -> float:
    """Learning rate as a fraction: linear warm-up, then cosine to zero."""
    if step < options.warmup:
        return (step + 1) / options.warmup
    return 0.5 * (1 + math.cos(math.pi * (step - options.warmup) / max(1, options.steps - options.warmup)))


def _batches(data: SplitData, image_size: int, options: Training) -> Iterator[Tensor]:
    """(batch_size, 3, S, S) float32 in [-1, 1]: every image once an epoch, in an order of its own, the next batch ahead."""
    rng = np.random.default_rng(options.seed)
    rows = np.concatenate([rng.permutation(len(data.ids)) for _ in range(_epochs(data, options))])
    flips = rng.random(len(rows)) < 0.5

    def load(i: int) -> Tensor:
        pixels = decode(data.read(int(rows[i])), image_size)
        pixels = pixels[:, ::-1] if flips[i] else pixels
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1

    def batch(step: int) -> list[Tensor]:
        return [load(i) for i in range(step * options.batch_size, (step + 1) * options.batch_size)]

    with ThreadPoolExecutor(_DECODERS) as pool:
        ahead = [pool.submit(batch, step) for step in range(min(_DECODERS, options.steps))]
        for step in range(options.steps):
            yield torch.stack(ahead.pop(0).result())
            if step + _DECODERS < options.steps:
                ahead.append(pool.submit(batch, step + _DECODERS))


def _epochs(data: SplitData, options: Training) -> int:
    return -(-options.steps * options.batch_size // len(data.ids))


def save(out: Path, state: Mapping[str, Tensor], config: Mapping[str, Any], training: Mapping[str, Any]) -> None:
    """Write ``out.safetensors`` and ``out.json``."""
    safetensors.torch.save_file(dict(state), out.with_suffix(".safetensors"))
    card = {"name": out.name, "file": f"{out.name}.safetensors", "model_config": dict(config), "training": dict(training)}
    out.with_suffix(".json").write_text(json.dumps(card, indent=1))


def main() -> None:
    """Read the command line, train, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="as for diffssl-extract")
    parser.add_argument("--split", help="which split of it; needed if there are several")
    parser.add_argument("--out", type=Path, required=True, help="name of the two files, without suffix")
    parser.add_argument("--model-config", type=Path, help="JSON of guided_diffusion's flags, or a card; default: the bundled")
    parser.add_argument("--steps", type=int, default=Training.steps)
    parser.add_argument("--batch-size", type=int, default=Training.batch_size)
    parser.add_argument("--learning-rate", type=float, default=Training.learning_rate)
    parser.add_argument("--seed", type=int, default=Training.seed)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    splits = load_data([given.data]).splits
    if given.split not in splits and (given.split or len(splits) > 1):
        parser.error(f"--split is one of {', '.join(splits)}, got {given.split}")
    config = dict(find_model(None, None, None).config)
    if given.model_config:
        card = json.loads(given.model_config.read_text())
        config = DEFAULTS | card.get("model_config", card)
    if config["class_cond"]:
        parser.error("class-conditional models cannot be trained here; set class_cond to false")
    options = Training(given.steps, given.batch_size, given.learning_rate, seed=given.seed)
    data = splits[given.split or next(iter(splits))]
    with progress_bar(options.steps, " steps", "train") as bar:

        def show(loss: float) -> None:
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            bar.update()

        state, losses = train(data, config, options, pick_device(given.device), show)
    mean = float(np.mean(losses[-_LOGGED:]))
    notes = {"data": given.data, "images": len(data.ids), "objective": "epsilon, MSE", "final_training_loss": mean}
    save(given.out, state, config, {**notes, **asdict(options)})
    print(f"{given.out}.safetensors and .json: loss {mean:.4f} (mean of the last {min(_LOGGED, len(losses))} steps)")


if __name__ == "__main__":
    main()
