"""Heads on feature vectors: several copies of one shape, trained side by side."""

from __future__ import annotations

import copy as copying
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .attention import AttentionHead, AttentionPool
from .cnn import SMALLEST_MAP, ConvHead
from .difformer import DifFormer
from .errors import ProbeError

Shape = tuple[int, int, int]


class StackedHead(Protocol):
    """R copies of a head: (n, D) features to (R, n, K) outputs."""

    def __call__(self, features: Tensor) -> Tensor:
        """Outputs of all copies."""

    def keep(self, copy: int) -> None:
        """Keep one copy only."""

    def state(self, copy: int) -> dict[str, Tensor]:
        """Weights of a copy, detached from its training."""

    def load(self, copy: int, state: Mapping[str, Tensor]) -> None:
        """Give a copy weights."""


class StackedMLP(nn.Module):
    """Copies of one multi-layer perceptron; without hidden layers, of one linear classifier.

    ReLU between layers, no norm, no dropout, as in the papers' code. All copies start from the same weights: they
    differ only in how they are trained.

    Args:
        copies: number of copies R.
        widths: input dimension D, hidden widths, number of classes K.
        generator: of the initial weights (uniform with variance 1 / (3 D), torch's default for a linear layer).
        batch_norm: batch normalisation of the input first, without weights of its own, the same for all copies.
    """

    def __init__(self, copies: int, widths: Sequence[int], generator: torch.Generator, batch_norm: bool = False) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(widths[0], affine=False) if batch_norm else nn.Identity()
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for fan_in, fan_out in pairwise(widths):
            bound = 1 / math.sqrt(fan_in)
            weight = (torch.rand(fan_in, fan_out, generator=generator) * 2 - 1) * bound
            bias = (torch.rand(1, fan_out, generator=generator) * 2 - 1) * bound
            self.weights.append(nn.Parameter(weight.repeat(copies, 1, 1)))
            self.biases.append(nn.Parameter(bias.repeat(copies, 1, 1)))

    def forward(self, features: Tensor) -> Tensor:
        """(n, D) features to (R, n, K) logits."""
        features = self.norm(features)
        copies, dimension, width = self.weights[0].shape
        # The copies share their input: one product instead of R.
        first = features @ self.weights[0].transpose(0, 1).reshape(dimension, copies * width)
        h: Tensor = first.view(-1, copies, width).transpose(0, 1) + self.biases[0]
        for weight, bias in zip(self.weights[1:], self.biases[1:], strict=True):
            h = torch.baddbmm(bias, torch.relu(h), weight)
        return h

    def keep(self, copy: int) -> None:
        """Keep one copy only."""
        for parameters in (self.weights, self.biases):
            for i, parameter in enumerate(parameters):
                parameters[i] = nn.Parameter(parameter.detach()[copy : copy + 1].clone())

    def state(self, copy: int) -> dict[str, Tensor]:
        """Weights of a copy."""
        return {
            name: value if name.startswith("norm.") else value[copy : copy + 1] for name, value in self.state_dict().items()
        }

    def load(self, copy: int, state: Mapping[str, Tensor]) -> None:
        """Give a copy weights."""
        own = self.state(copy)
        with torch.no_grad():
            for name, value in state.items():
                own[name].copy_(value)


class Copies(nn.Module):
    """Copies of any module that takes maps, all from the same start.

    Args:
        copies: number of copies R.
        module: takes a list of (n, C, p, p) maps, one a setting, and gives (n, K).
        shapes: (C, p, p) of each setting.
    """

    def __init__(self, copies: int, module: nn.Module, shapes: Sequence[Shape]) -> None:
        super().__init__()
        self.members = nn.ModuleList(copying.deepcopy(module) for _ in range(copies))
        self._shapes = list(shapes)

    def forward(self, features: Tensor) -> Tensor:
        """(n, D) features to (R, n, K)."""
        sizes = [math.prod(shape) for shape in self._shapes]
        parts = torch.split(features, sizes, dim=1)
        maps = [part.view(-1, *shape) for part, shape in zip(parts, self._shapes, strict=True)]
        return torch.stack([module(maps) for module in self.members])

    def keep(self, copy: int) -> None:
        """Keep one copy only."""
        self.members = nn.ModuleList([self.members[copy]])

    def state(self, copy: int) -> dict[str, Tensor]:
        """Weights of a copy."""
        return {name: value.detach() for name, value in self.members[copy].state_dict().items()}

    def load(self, copy: int, state: Mapping[str, Tensor]) -> None:
        """Give a copy weights."""
        self.members[copy].load_state_dict(dict(state))


Maker = Callable[[Sequence[Shape], int], nn.Module]  # shapes of the settings, number of outputs


def build_head(
    head: str,
    shapes: Sequence[Shape],
    timesteps: int,
    outputs: int,
    copies: int,
    options: Mapping[str, Any],
    seed: int,
    own: Maker | None = None,
) -> StackedMLP | Copies:
    """Copies of a head by its name.

    Args:
        head: ``linear``, ``mlp``, ``cnn``, ``attention``, ``attnpool``, ``difformer``; any other name with ``own``.
        shapes: (C, p, p) of each setting; for ``difformer`` all blocks of the first timestep, then of the next.
        timesteps: among the settings.
        outputs: K.
        copies: R.
        options: of the head, see ``protocols/default.json``.
        seed: of the initial weights.
        own: makes a user's own head.

    Raises:
        ProbeError: the head cannot be built for these settings.
    """
    if head in ("linear", "mlp"):
        widths = (sum(math.prod(shape) for shape in shapes), *(options["hidden"] if head == "mlp" else ()), outputs)
        return StackedMLP(copies, widths, torch.Generator().manual_seed(seed), options.get("batch_norm", False))
    # Modules draw their weights from torch's global generator, which is given back as it was.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        module = own(shapes, outputs) if own is not None else _map_head(head, shapes, timesteps, outputs, options)
    return Copies(copies, module, shapes)


def _map_head(head: str, shapes: Sequence[Shape], timesteps: int, outputs: int, options: Mapping[str, Any]) -> nn.Module:
    if head == "difformer":
        return DifFormer(shapes[: len(shapes) // timesteps], timesteps, outputs, options["width"], options["depth"])
    if len(shapes) > 1:
        raise ProbeError(f"--head {head} reads one map at a time, got {len(shapes)} settings; leave out --concat")
    shape = shapes[0]
    if head == "cnn":
        if shape[1] < SMALLEST_MAP:
            raise ProbeError(f"--head cnn wants maps of {SMALLEST_MAP}x{SMALLEST_MAP} at least, got {shape[1]}x{shape[2]}")
        return ConvHead(shape, outputs, options["width"])
    if head == "attnpool":
        return AttentionPool(shape, outputs)
    return AttentionHead(shape, outputs, options["width"], options["depth"], options["tokenizer"] == "norm")
