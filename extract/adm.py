"""Backbone adapter for every U-Net of guided_diffusion (ADM). The only file that imports guided_diffusion."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..store import Block
from .errors import ExtractError, UnknownBlock
from .fast_unet import FastBlock
from .flops import measure
from .images import GUIDED
from .model import CHANNELS_LAST, CONTIGUOUS
from .weights import load_state, read_state
from .zoo import ModelSource, check_condition

with warnings.catch_warnings():
    # Its import decorates with torch.cuda.amp.custom_fwd, which newer torch has renamed.
    warnings.simplefilter("ignore", FutureWarning)
    from guided_diffusion.gaussian_diffusion import get_named_beta_schedule
    from guided_diffusion.nn import timestep_embedding
    from guided_diffusion.script_util import create_model_and_diffusion
    from guided_diffusion.unet import AttentionBlock, Downsample, ResBlock, UNetModel, Upsample


class ADM:
    """A guided_diffusion U-Net as a :class:`~diffssl.extract.backbone.Backbone`.

    Args:
        model: on its device, in float32, in evaluation mode. With the fast blocks, its own are taken from it.
        config: the configuration it was made from.
        condition: for class-conditional models, ``none`` (no class embedding is added), ``mean`` (the mean of all
            class embeddings) or a class number; ``none`` for others.
        dtype: compute dtype. Of guided_diffusion's own blocks, float16 and bfloat16 are by autocast.
        memory_format: ``contiguous`` for guided_diffusion's own blocks, ``channels_last`` for the same functions made
            faster, which agree with them in float32 to 1e-5 of a block's largest magnitude.
    """

    def __init__(
        self,
        model: UNetModel,
        config: Mapping[str, Any],
        condition: str = "none",
        dtype: torch.dtype = torch.float32,
        memory_format: str = CONTIGUOUS,
    ) -> None:
        self.device = next(model.parameters()).device
        self.image_size = int(config["image_size"])
        self.resize = GUIDED
        self.sample_shape = (int(model.in_channels), self.image_size, self.image_size)
        self.blocks: Sequence[Block] = measure_blocks(config)
        self._model = model
        self._dtype = dtype
        self._n_inputs = len(model.input_blocks)
        self._modules: list[nn.Module] = [*model.input_blocks, model.middle_block, *model.output_blocks]
        self._fast = memory_format == CHANNELS_LAST
        if self._fast:
            del model.input_blocks, model.middle_block, model.output_blocks, model.out
            self._modules = [FastBlock(module, dtype) for module in self._modules]
        self._condition = _condition_embedding(model, condition)
        alphas_cumprod, self._model_timesteps = _schedule(config)
        self.diffusion_steps = len(self._model_timesteps)
        self._alpha, self._sigma = alphas_cumprod.sqrt().tolist(), (1 - alphas_cumprod).sqrt().tolist()

    def schedule(self, timestep: int) -> tuple[float, float]:
        """(alpha, sigma) of a timestep: the square roots of abar_t and 1 - abar_t. Raises ``UnknownBlock``."""
        if not 0 <= timestep < self.diffusion_steps:
            raise UnknownBlock(f"the model has no timestep {timestep}; its timesteps are 0 to {self.diffusion_steps - 1}")
        return self._alpha[timestep], self._sigma[timestep]

    def encode(self, images: Tensor) -> Tensor:
        """The identity: the model works on pixels."""
        return images

    def diffuse(self, x_0: Tensor, noise: Tensor, timestep: int) -> Tensor:
        """x_t = alpha x_0 + sigma noise, in float32."""
        alpha, sigma = self.schedule(timestep)
        return alpha * x_0 + sigma * noise

    def features(self, x_t: Tensor, timestep: int | None, blocks: Collection[int]) -> Iterator[tuple[int, Tensor]]:
        """Yield (block, (n, C, H, W) activation) in the order the data flows, and stop after the deepest block.

        The forward pass is guided_diffusion's own, block for block, or the same made faster. A skip activation is kept
        only if an output block that will run reads it, and let go when it has.
        """
        if timestep is None:
            raise ValueError(f"a U-Net wants a timestep from 0 to {self.diffusion_steps - 1}, got None")
        deepest = max(blocks)
        if min(blocks) < 1 or deepest > len(self._modules):
            known = f"1 to {len(self._modules)}"
            raise UnknownBlock(f"the model has no blocks {sorted(set(blocks) - self._numbers())}; its blocks are {known}")
        self.schedule(timestep)  # refuses an unknown one
        n_inputs = self._n_inputs
        n_outputs = max(0, deepest - n_inputs - 1)  # output block k reads the skip of input block n_inputs - k
        skips: list[Tensor] = []
        # Samples of a batch share their embedding, of which the fast blocks want one row.
        emb = self._embedding(timestep, 1 if self._fast else len(x_t))
        h = x_t.to(self._dtype, memory_format=torch.channels_last) if self._fast else x_t
        for number, module in enumerate(self._modules[:deepest], start=1):
            if number > n_inputs + 1:
                h = torch.cat([h, skips.pop()], dim=1)
            with self._autocast():
                h = module(h, emb)
            if n_inputs - n_outputs < number <= n_inputs:
                skips.append(h)
            if number in blocks:
                yield number, h

    def _embedding(self, timestep: int, n: int) -> Tensor:
        """(n, 4 * model_channels) embedding of the timestep, and of the class if the model is conditional."""
        with self._autocast():
            steps = torch.full((n,), self._model_timesteps[timestep], device=self.device)
            emb: Tensor = self._model.time_embed(timestep_embedding(steps, self._model.model_channels))
            return emb if self._condition is None else emb + self._condition

    def _autocast(self) -> Any:
        if self._dtype == torch.float32 or self._fast:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self._dtype)

    def _numbers(self) -> set[int]:
        return set(range(1, len(self._modules) + 1))


def load_adm(
    source: ModelSource,
    device: torch.device,
    condition: str | None,
    dtype: torch.dtype,
    memory_format: str = CONTIGUOUS,
) -> ADM:
    """Load a model.

    Args:
        source: configuration and weights.
        device: where to.
        condition: see :class:`ADM`; None where the model is unconditional.
        dtype: compute dtype.
        memory_format: see :class:`ADM`.

    Raises:
        CheckpointMismatch: weights and configuration do not fit; the differing keys are listed.
        ExtractError: the configuration is impossible, or a condition is missing or not known.
    """
    model = build_unet(source.config)
    load_state(source.weights, model, read_state(source.weights))
    model.requires_grad_(False).eval().to(device)
    return ADM(model, source.config, check_condition(source.config, condition), dtype, memory_format)


def build_unet(config: Mapping[str, Any]) -> UNetModel:
    """The U-Net of a configuration, without weights (on the meta device), in float32."""
    try:
        with torch.device("meta"):
            model, _ = create_model_and_diffusion(**{**config, "use_fp16": False, "use_checkpoint": False})
    except (ValueError, AssertionError, ZeroDivisionError, TypeError, RuntimeError) as error:
        raise ExtractError(f"guided_diffusion cannot build a U-Net from this configuration: {error}") from error
    return model


def measure_blocks(config: Mapping[str, Any]) -> list[Block]:
    """Kind, channels, size and cumulative GFLOP of every block, from a forward pass on the meta device."""
    model = build_unet(config)
    with torch.device("meta"), torch.no_grad():
        emb = model.time_embed(torch.empty(1, model.model_channels))
        return measure(_walk(model, emb, int(config["image_size"])))


def _walk(model: UNetModel, emb: Tensor, size: int) -> Iterator[tuple[str, Tensor]]:
    """(kind, activation) of every block of a forward pass of one image, and then the output layers."""
    h = torch.empty(1, model.in_channels, size, size)
    skips: list[Tensor] = []
    for module in [*model.input_blocks, model.middle_block]:
        h = module(h, emb)
        skips.append(h)
        yield _kind(module), h
    skips.pop()  # of the middle block
    for module in model.output_blocks:
        h = module(torch.cat([h, skips.pop()], dim=1), emb)
        yield _kind(module), h
    model.out(h)


def _kind(module: nn.Module) -> str:
    names = []
    for layer in module.children():
        if isinstance(layer, ResBlock):
            changes = isinstance(layer.h_upd, (Upsample, Downsample))
            names.append("Res" + (("Up" if isinstance(layer.h_upd, Upsample) else "Down") if changes else ""))
        elif isinstance(layer, AttentionBlock):
            names.append("Attn")
        else:
            names.append({"Conv2d": "Conv", "Upsample": "Up", "Downsample": "Down"}[type(layer).__name__])
    return "+".join(names)


def _schedule(config: Mapping[str, Any]) -> tuple[Tensor, list[float]]:
    """abar of each timestep, float64, and what the network is given as timestep."""
    steps = int(config["diffusion_steps"])
    if config["timestep_respacing"]:
        raise ExtractError("timestep_respacing is for sampling; leave it empty: features are taken at raw timesteps")
    betas = torch.from_numpy(get_named_beta_schedule(config["noise_schedule"], steps))
    scale = 1000.0 / steps if config["rescale_timesteps"] else 1
    return torch.cumprod(1 - betas, dim=0), [timestep * scale for timestep in range(steps)]


def _condition_embedding(model: UNetModel, condition: str) -> Tensor | None:
    if condition == "none":
        return None
    embeddings: Tensor = model.label_emb.weight
    return embeddings.mean(dim=0) if condition == "mean" else embeddings[int(condition)]
