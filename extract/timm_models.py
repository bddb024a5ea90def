"""ResNets and ViTs of timm as encoders without timesteps. The only file that imports timm."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import timm
import timm.data
import torch
from timm.models.resnet import ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from ..store import Block
from .errors import ExtractError, MissingWeights, UnknownBlock, UnknownModel
from .flops import measure
from .images import Resize, preprocessing
from .model import CONTIGUOUS
from .pooling import Tokens
from .weights import load_state, read_state, state_sha256

_FAMILIES = (ResNet, VisionTransformer)
_SCHEMES = ("hf-hub:", "local-dir:")  # names that timm looks up elsewhere than in its registry

Step = Callable[[Tensor], Tensor]
Net = Any  # a ResNet or VisionTransformer: timm is not there for type checkers


class TimmModel:
    """A model of timm as a :class:`~diffssl.extract.model.Model`.

    Args:
        architecture: as ``timm.create_model`` takes it.
        checkpoint: weights of one's own, ``.safetensors`` or a torch ``state_dict``; those that timm publishes without.

    Raises:
        UnknownModel: timm has no such model, or it is neither a ResNet nor a ViT.
        ExtractError: the checkpoint is not there, or the model's preprocessing is not known here.
    """

    conditional = False
    memory_formats = (CONTIGUOUS,)
    diffusion_steps = None

    def __init__(self, architecture: str, checkpoint: Path | None) -> None:
        if not architecture.startswith(_SCHEMES) and not timm.is_model(architecture):
            near = difflib.get_close_matches(architecture.partition(".")[0], timm.list_models(), 5)
            raise UnknownModel(f"timm has no model {architecture!r}; near are {', '.join(near) or 'none'}")
        if checkpoint is not None and not checkpoint.is_file():
            raise ExtractError(f"{checkpoint}: there is no such checkpoint file")
        self.name = f"timm:{architecture}" + ("" if checkpoint is None else f" with {checkpoint.name}")
        self._architecture = architecture
        self._checkpoint = checkpoint
        with torch.device("meta"):
            self._bare = _create(architecture)
        self._data = timm.data.resolve_model_data_config(self._bare)
        self.resize = _resize(self.name, self._data)
        self.image_size = int(self._data["input_size"][1])

    def condition(self, wanted: str | None) -> str:
        """There is none. Raises ``ExtractError`` for another."""
        if wanted not in (None, "none"):
            raise ExtractError(f"{self.name} knows no conditions, so --condition {wanted} means nothing to it")
        return "none"

    def identity(self) -> dict[str, Any]:
        """The library and the name of the architecture, without that of the weights."""
        return {"library": "timm", "architecture": self._bare.pretrained_cfg["architecture"]}

    def preprocessing(self) -> dict[str, Any]:
        """As ``timm.data.resolve_model_data_config`` has it."""
        mean, std = list(self._data["mean"]), list(self._data["std"])
        own = {"range": "normalised", "crop_pct": self.resize.crop_pct, "mean": mean, "std": std}
        return preprocessing(self.image_size, self.resize) | own

    def weights_sha256(self) -> str | None:
        """:func:`~diffssl.extract.weights.state_sha256` of the network; None while timm has not been asked for weights."""
        return self._digest if self._checkpoint is not None or "_loaded" in self.__dict__ else None

    def fetch(self, echo: Callable[[str], object]) -> None:
        """Load the weights, which timm downloads on first use. Raises ``MissingWeights``."""
        if self._checkpoint is None and "_loaded" not in self.__dict__:
            echo(f"weights of {self.name}: timm's, from its cache or downloaded")
        _ = self._loaded

    def measure_blocks(self) -> list[Block]:
        """Kind, channels, size and cumulative GFLOP of every block."""
        return measure_blocks(self._bare, self.image_size)

    def load(self, device: torch.device, dtype: torch.dtype, condition: str, memory_format: str = CONTIGUOUS) -> TimmEncoder:  # noqa: ARG002
        """The encoder on its device; ``condition`` is ``none``. Raises ``MissingWeights`` or ``CheckpointMismatch``."""
        self.condition(condition)
        return TimmEncoder(self._loaded.to(device), self._data, self.resize, self.measure_blocks(), dtype)

    @cached_property
    def _loaded(self) -> Net:
        """The network with its weights, in float32, on the CPU until it is asked for elsewhere."""
        model = _create(self._architecture, pretrained=self._checkpoint is None)
        if self._checkpoint is not None:
            state = read_state(self._checkpoint)
            classifier = _classifier(self._bare)  # is no part of any feature, and has as many classes as it likes
            load_state(self._checkpoint, model, {name: v for name, v in state.items() if not name.startswith(classifier)})
        return model.float()

    @cached_property
    def _digest(self) -> str:
        return state_sha256(self._loaded)


class TimmEncoder:
    """A ResNet or ViT as a :class:`~diffssl.extract.backbone.Backbone` without timesteps.

    Args:
        model: on its device, in float32, in evaluation mode.
        data: its data configuration: ``input_size``, ``mean``, ``std``.
        resize: how images are resized.
        blocks: of :func:`measure_blocks`.
        dtype: compute dtype; float16 and bfloat16 by autocast.
    """

    diffusion_steps = None

    def __init__(
        self, model: Net, data: dict[str, Any], resize: Resize, blocks: Sequence[Block], dtype: torch.dtype = torch.float32
    ) -> None:
        self.device = next(model.parameters()).device
        self.image_size = int(data["input_size"][1])
        self.sample_shape = (3, self.image_size, self.image_size)
        self.resize = resize
        self.blocks = blocks
        self._model = model
        self._steps = _steps(model)
        self._dtype = dtype
        mean, std = (torch.tensor(data[name], device=self.device).view(1, 3, 1, 1) for name in ("mean", "std"))
        self._scale, self._shift = 0.5 / std, (0.5 - mean) / std

    def schedule(self, timestep: int) -> tuple[float, float]:
        """There is none."""
        raise ValueError(f"an encoder has no timesteps, got {timestep}")

    def encode(self, images: Tensor) -> Tensor:
        """Images in [-1, 1], normalised by the model's mean and deviation of [0, 1]."""
        return images * self._scale + self._shift

    def diffuse(self, x_0: Tensor, noise: Tensor, timestep: int) -> Tensor:
        """There is no noise."""
        raise ValueError(
            f"an encoder has no timesteps, got {timestep} and noise of {tuple(noise.shape)} for {tuple(x_0.shape)}"
        )

    def features(self, x_t: Tensor, timestep: int | None, blocks: Collection[int]) -> Iterator[tuple[int, Tensor | Tokens]]:
        """Yield (block, activation) in the order the data flows, and stop after the deepest block.

        The forward pass is timm's own, block for block. Of a ViT, an activation is the residual stream after a layer,
        before the model's last norm.
        """
        if timestep is not None:
            raise ValueError(f"an encoder has no timesteps, got {timestep}")
        deepest = max(blocks)
        if min(blocks) < 1 or deepest > len(self._steps):
            raise UnknownBlock(f"the model has no blocks {sorted(blocks)}; its blocks are 1 to {len(self._steps)}")
        h = x_t
        for number, (_, step) in enumerate(self._steps[:deepest], start=1):
            with self._autocast():
                h = step(h)
            if number in blocks:
                yield number, _activation(self._model, h)

    def _autocast(self) -> Any:
        return nullcontext() if self._dtype == torch.float32 else torch.autocast(self.device.type, dtype=self._dtype)


def measure_blocks(model: Net, image_size: int) -> list[Block]:
    """Kind, channels, size and cumulative GFLOP of every block of a ResNet or ViT."""

    def walk() -> Iterator[tuple[str, Tensor | Tokens]]:
        h = torch.zeros(1, 3, image_size, image_size, device=next(model.parameters()).device)
        for kind, step in _steps(model):
            h = step(h)
            yield kind, _activation(model, h)

    return measure(walk())


def _steps(model: Net) -> list[tuple[str, Step]]:
    """What a block is, and how its input becomes its output.

    Of a ResNet, block 1 is the stem, and each residual block is one: ``Bottleneck 3.6`` is the sixth of layer 3. Of a
    ViT, each layer is one; the first includes the embedding.
    """
    if isinstance(model, ResNet):
        layers = (model.layer1, model.layer2, model.layer3, model.layer4)
        residual = [
            (f"{type(block).__name__} {i}.{j}", block) for i, layer in enumerate(layers, 1) for j, block in enumerate(layer, 1)
        ]
        return [("Stem", lambda x: model.maxpool(model.act1(model.bn1(model.conv1(x))))), *residual]
    first, *rest = model.blocks

    def embed(x: Tensor) -> Tensor:
        h: Tensor = first(model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(x)))))
        return h

    return [("Embed+Attn+MLP", embed), *(("Attn+MLP", block) for block in rest)]


def _activation(model: Net, h: Tensor) -> Tensor | Tokens:
    """The map of a ResNet as it is; the patch tokens of a ViT (n, N, C) in their places, with the class token if any."""
    if isinstance(model, ResNet):
        return h
    height, width = model.patch_embed.grid_size
    patches = h[:, model.num_prefix_tokens :].mT.view(len(h), -1, height, width)
    return Tokens(patches, h[:, 0]) if model.cls_token is not None else patches


def _create(architecture: str, pretrained: bool = False) -> Net:
    """A network of timm without classifier. Raises ``UnknownModel`` or ``MissingWeights``."""
    try:
        model = timm.create_model(architecture, pretrained=pretrained, num_classes=0)
    except Exception as error:  # timm and the hub raise nearly anything, and say what in words
        if not pretrained:
            raise UnknownModel(f"timm cannot make {architecture}: {error}") from error
        raise MissingWeights(
            f"timm cannot get the weights of {architecture} ({error}); they can be given as --checkpoint FILE"
        ) from error
    family = next((family for family in _FAMILIES if isinstance(model, family)), None)
    if family is None or type(model).forward_features is not family.forward_features:
        raise UnknownModel(
            f"timm's {architecture} is a {type(model).__name__}; known here are ResNet and VisionTransformer. "
            "Others: --backbone FILE.py:FUNCTION (docs/backbones.md)"
        )
    return model.requires_grad_(False).eval()


def _resize(name: str, data: dict[str, Any]) -> Resize:
    channels, height, width = data["input_size"]
    if channels != 3 or height != width or data["crop_mode"] not in ("center", "squash"):
        raise ExtractError(
            f"{name} wants {data['input_size']} cropped by {data['crop_mode']!r}; known are squares of 3 colours"
        )
    return Resize(data["interpolation"], halvings=False, crop_pct=data["crop_pct"], squash=data["crop_mode"] == "squash")


def _classifier(model: Net) -> tuple[str, ...]:
    names = model.pretrained_cfg["classifier"]
    return tuple(f"{name}." for name in ([names] if isinstance(names, str) else names or ()))
