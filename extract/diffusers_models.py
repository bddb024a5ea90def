"""U-Nets and transformers of diffusers as backbones. The only file that imports diffusers, and transformers for prompts.

Their own forward passes run, watched by hooks (``hooked.py``): diffusers has some twenty kinds of down and up blocks whose
calls differ and change, while all of them keep their layers in lists of the same names.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from torch import Tensor

from ..store import Block
from .errors import ExtractError, MissingLibrary, UnknownBlock, UnknownModel
from .flops import Meter
from .hooked import Unit, activations, trace
from .images import GUIDED

if TYPE_CHECKING:
    from .diffusers_source import DiffusersModel

Net = Any  # a model of diffusers: it is not there for type checkers

_CLASSES = {
    "UNet2DModel": diffusers.UNet2DModel,
    "UNet2DConditionModel": diffusers.UNet2DConditionModel,
    "DiTTransformer2DModel": diffusers.DiTTransformer2DModel,
    "Transformer2DModel": diffusers.DiTTransformer2DModel,  # as it was called, with norm_type ada_norm_zero
}
_LISTS = {"resnets", "attentions", "downsamplers", "upsamplers"}


class DiffusersBackbone:
    """A network of diffusers as a :class:`~diffssl.extract.backbone.Backbone`.

    Args:
        net: on its device, in float32, in evaluation mode.
        blocks: of :func:`measure_blocks`.
        alphas_cumprod: (diffusion steps,) of the scheduler.
        image_size: side of the images.
        vae: for latent models, likewise on its device.
        condition: further arguments of ``net``, each of one sample: (1, …).
        dtype: compute dtype of the network; float16 and bfloat16 by autocast. The VAE computes in float32.
    """

    def __init__(
        self,
        net: Net,
        blocks: Sequence[Block],
        alphas_cumprod: Tensor,
        image_size: int,
        vae: Net | None,
        condition: Mapping[str, Tensor],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.device: torch.device = net.device
        self.blocks = blocks
        self.diffusion_steps = len(alphas_cumprod)
        self.image_size = image_size
        self.resize = GUIDED
        side = image_size if vae is None else image_size // 2 ** (len(vae.config.block_out_channels) - 1)
        self.sample_shape = (int(net.config.in_channels), side, side)
        self._net, self._vae, self._dtype = net, vae, dtype
        self._condition = {name: value.to(self.device) for name, value in condition.items()}
        self._units = units(net)
        alphas = alphas_cumprod.double()
        self._alpha, self._sigma = alphas.sqrt().tolist(), (1 - alphas).sqrt().tolist()

    def schedule(self, timestep: int) -> tuple[float, float]:
        """(alpha, sigma) of a timestep, by the scheduler's alphas. Raises ``UnknownBlock``."""
        if not 0 <= timestep < self.diffusion_steps:
            raise UnknownBlock(f"the model has no timestep {timestep}; its timesteps are 0 to {self.diffusion_steps - 1}")
        return self._alpha[timestep], self._sigma[timestep]

    def encode(self, images: Tensor) -> Tensor:
        """Images as they are, or their latents: the mode of the VAE's distribution, shifted and scaled as it was trained."""
        if self._vae is None:
            return images
        latents: Tensor = self._vae.encode(images).latent_dist.mode()
        shift, scale = self._vae.config.shift_factor or 0.0, float(self._vae.config.scaling_factor)
        return (latents - shift) * scale

    def diffuse(self, x_0: Tensor, noise: Tensor, timestep: int) -> Tensor:
        """x_t = alpha x_0 + sigma noise, in float32."""
        alpha, sigma = self.schedule(timestep)
        return alpha * x_0 + sigma * noise

    def features(self, x_t: Tensor, timestep: int | None, blocks: Collection[int]) -> Iterator[tuple[int, Tensor]]:
        """Yield (block, (n, C, H, H) activation) in the order the data flows; nothing runs after the deepest block.

        All wanted activations of the batch are there at once, and let go as they are yielded.
        """
        if timestep is None:
            raise ValueError(f"the model wants a timestep from 0 to {self.diffusion_steps - 1}, got None")
        self.schedule(timestep)  # refuses an unknown one
        if min(blocks) < 1 or max(blocks) > len(self._units):
            raise UnknownBlock(f"the model has no blocks {sorted(blocks)}; its blocks are 1 to {len(self._units)}")
        with nullcontext() if self._dtype == torch.float32 else torch.autocast(self.device.type, dtype=self._dtype):
            found = activations(partial(_forward, self._net, x_t, timestep, self._condition), self._units, blocks)
        for number in sorted(found):
            yield number, as_map(found.pop(number))


def load_diffusers(model: DiffusersModel, device: torch.device, dtype: torch.dtype, condition: str) -> DiffusersBackbone:
    """Load a pipeline's network and, if it has them, VAE and prompt.

    Raises:
        UnknownModel: its scheduler has no alphas.
        ExtractError: weights cannot be read, or the prompt is too long.
    """
    alphas_cumprod = _alphas_cumprod(model)
    vae = None if model.vae is None else _weighted(diffusers.AutoencoderKL, model, "vae").to(device)
    net = _weighted(_CLASSES[model.network], model, model.part).to(device)
    inputs = _condition(model, condition)
    return DiffusersBackbone(net, model.measure_blocks(), alphas_cumprod, model.image_size, vae, inputs, dtype)


def measure_blocks(model: DiffusersModel) -> list[Block]:
    """Kind, channels, size and cumulative GFLOP of every block, from a forward pass on the meta device."""
    with torch.device("meta"):
        net = _CLASSES[model.network].from_config(model.config).to("meta").eval()
        x = torch.empty(1, net.config.in_channels, model.sample_size, model.sample_size)
        condition: dict[str, Tensor] = {}
        if model.text is not None:
            tokens = model.text.get("max_position_embeddings", 77)
            condition["encoder_hidden_states"] = torch.empty(1, tokens, net.config.cross_attention_dim)
        elif model.classes is not None:
            condition["class_labels"] = torch.zeros(1, dtype=torch.int64)
        with Meter() as meter:
            trace(partial(_forward, net, x, 0, condition), units(net), lambda kind, output: meter.add(kind, as_map(output)))
    return meter.blocks()


def units(net: Net) -> list[Unit]:
    """Blocks of a network, in the order they run.

    Of a U-Net as in guided-diffusion: the first convolution; each residual block, with its attention if it has one; each
    downsampling; the middle block; each residual block of the way up, the last of a level with the upsampling. Of a
    transformer, each layer. Raises ``UnknownModel`` for down and up blocks that are built otherwise.
    """
    if hasattr(net, "transformer_blocks"):
        return [Unit("Attn+MLP", layer) for layer in net.transformer_blocks]
    found = [Unit("Conv", net.conv_in)]
    for block in net.down_blocks:
        found += _layers(block)
        found += [Unit("Down", block.downsamplers[-1])] if _list(block, "downsamplers") else []
    if net.mid_block is not None:
        found.append(Unit(_middle(net.mid_block), net.mid_block))
    for block in net.up_blocks:
        found += _layers(block)
        if _list(block, "upsamplers"):
            found[-1] = Unit(f"{found[-1].kind}+Up", block.upsamplers[-1])
    return found


def as_map(output: Tensor) -> Tensor:
    """An activation as a map: of a transformer, the tokens (n, N, C) in their places, (n, C, H, H)."""
    if output.ndim == 4:
        return output
    side = round(output.shape[1] ** 0.5)
    return output.mT.view(len(output), -1, side, side)


def _layers(block: Net) -> list[Unit]:
    """Residual blocks, each with the attention of the same number, whose output is the unit's."""
    strange = {name for name, _ in block.named_children()} - _LISTS
    if strange:
        raise UnknownModel(f"a {type(block).__name__} has {', '.join(sorted(strange))} besides its lists of layers")
    attentions = [*_list(block, "attentions"), *[None] * len(block.resnets)]
    return [
        Unit("Res", resnet) if attention is None else Unit("Res+Attn", attention)
        for resnet, attention in zip(block.resnets, attentions, strict=False)
    ]


def _middle(block: Net) -> str:
    attentions = [attention is not None for attention in _list(block, "attentions")]
    return "Res" + "".join("+Attn+Res" if there else "+Res" for there in attentions)


def _list(block: Net, name: str) -> list[Net]:
    return list(getattr(block, name, None) or ())


def _forward(net: Net, x_t: Tensor, timestep: int, condition: Mapping[str, Tensor]) -> object:
    n = len(x_t)
    steps = torch.full((n,), timestep, device=x_t.device)
    inputs = {name: value.expand(n, *value.shape[1:]) for name, value in condition.items()}
    return net(x_t, timestep=steps, **inputs, return_dict=False)


def _weighted(kind: Any, model: DiffusersModel, part: str) -> Net:
    """A part of a pipeline with its weights, in float32 on the CPU; of safetensors files only."""
    try:
        net = kind.from_pretrained(model.place(part), use_safetensors=True, low_cpu_mem_usage=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise ExtractError(f"{model.place(part)}: diffusers cannot load it ({error})") from error
    return net.float().requires_grad_(False).eval()


def _alphas_cumprod(model: DiffusersModel) -> Tensor:
    name = str(model.scheduler.get("_class_name"))
    kind: Any = getattr(diffusers, name, None)
    if kind is None or not issubclass(kind, diffusers.SchedulerMixin):
        raise UnknownModel(f"{model.name} has the scheduler {name}, which this diffusers does not know")
    alphas: Tensor | None = getattr(kind.from_config(model.scheduler), "alphas_cumprod", None)
    if alphas is None or len(alphas) != model.diffusion_steps:
        raise UnknownModel(f"{model.name} has the {name}, whose noise is not given by alphas_cumprod (DDPM, DDIM, PNDM, … are)")
    return alphas


def _condition(model: DiffusersModel, condition: str) -> dict[str, Tensor]:
    """Arguments of the network that say the condition, of one sample."""
    if model.text is not None:
        return {"encoder_hidden_states": _prompt(model, "" if condition == "none" else condition)}
    if model.classes is None:
        return {}
    return {"class_labels": torch.tensor([model.classes if condition == "none" else int(condition)])}


def _prompt(model: DiffusersModel, text: str) -> Tensor:
    """(1, tokens, width) embedding of a prompt by the pipeline's tokenizer and text encoder, in float32 on the CPU."""
    try:
        from transformers import CLIPTextModel, CLIPTokenizer
    except ImportError as error:
        raise MissingLibrary("diffusers", error) from error
    tokenizer = CLIPTokenizer.from_pretrained(model.folder / "tokenizer")
    encoder = _weighted(CLIPTextModel, model, "text_encoder")
    longest = int(tokenizer.model_max_length)
    tokens = tokenizer(text, padding="max_length", max_length=longest, return_tensors="pt")
    if tokens.input_ids.shape[1] > longest:
        raise ExtractError(f"the prompt {text!r} has {tokens.input_ids.shape[1]} tokens; the text encoder takes {longest}")
    mask = tokens.attention_mask if getattr(encoder.config, "use_attention_mask", None) else None
    with torch.no_grad():
        embedding: Tensor = encoder(tokens.input_ids, attention_mask=mask)[0]
    return embedding
