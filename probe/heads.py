"""Heads on standardised feature vectors, several copies of one shape trained side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class StackedMLP(nn.Module):
    """Copies of one multi-layer perceptron; without hidden layers, of one linear classifier.

    ReLU between layers, no norm, no dropout, as in the papers' code. All copies start from the same weights: they
    differ only in how they are trained.

    Args:
        copies: number of copies R.
        widths: input dimension D, hidden widths, number of classes K.
        generator: of the initial weights (uniform with variance 1 / (3 D), torch's default for a linear layer).
    """

    def __init__(self, copies: int, widths: Sequence[int], generator: torch.Generator) -> None:
        super().__init__()
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
