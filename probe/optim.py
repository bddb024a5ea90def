"""Optimisers with a learning rate and a weight decay of its own for each copy of a head.

torch's own have one of each a parameter group, and the copies of a stacked head live in one tensor, which is what makes
training them together cheap.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from .heads import Copies


class Optimiser(Protocol):
    """Updates the weights of all copies."""

    def step(self, factor: float) -> None:
        """Update from the gradients, with every rate times ``factor``, and clear them."""


class StackedAdamW:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101) over parameters whose first axis is the copy.

    Args:
        parameters: each of shape (R, ...).
        learning_rates: (R,) peak rates.
        weight_decays: (R,) decoupled.
        betas: decay of the first and second moments.
        eps: added to the root of the second moment.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        learning_rates: Tensor,
        weight_decays: Tensor,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        self._parameters = list(parameters)
        self._rates = learning_rates
        self._decays = weight_decays
        self._betas = betas
        self._eps = eps
        self._first = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._second = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._steps = 0

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """Update from the gradients, with every rate times ``factor``, and clear them."""
        self._steps += 1
        beta1, beta2 = self._betas
        correction1, correction2 = 1 - beta1**self._steps, 1 - beta2**self._steps
        for parameter, first, second in zip(self._parameters, self._first, self._second, strict=True):
            gradient = parameter.grad
            assert gradient is not None
            per_copy = (-1, *[1] * (parameter.dim() - 1))
            rate = (self._rates * factor).view(per_copy)
            parameter.mul_(1 - rate * self._decays.view(per_copy))
            first.lerp_(gradient, 1 - beta1)
            second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            root = second.div(correction2).sqrt_().add_(self._eps)
            parameter.sub_(rate / correction1 * first / root)
            parameter.grad = None


class StackedSGD:
    """Stochastic gradient descent with momentum over parameters whose first axis is the copy, as torch.optim.SGD.

    Args:
        parameters: each of shape (R, ...).
        learning_rates: (R,) peak rates.
        weight_decays: (R,) added to the gradient.
        momentum: of the gradients.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], learning_rates: Tensor, weight_decays: Tensor, momentum: float = 0.0
    ) -> None:
        self._parameters = list(parameters)
        self._rates = learning_rates
        self._decays = weight_decays
        self._momentum = momentum
        self._velocity = [torch.zeros_like(parameter) for parameter in self._parameters]

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """Update from the gradients, with every rate times ``factor``, and clear them."""
        for parameter, velocity in zip(self._parameters, self._velocity, strict=True):
            assert parameter.grad is not None
            per_copy = (-1, *[1] * (parameter.dim() - 1))
            gradient = parameter.grad + self._decays.view(per_copy) * parameter
            velocity.mul_(self._momentum).add_(gradient)
            parameter.sub_((self._rates * factor).view(per_copy) * velocity)
            parameter.grad = None


class CopiesOptimiser:
    """torch's AdamW or SGD, one for each member of :class:`~diffssl.probe.heads.Copies`.

    Args:
        head: the copies.
        kind: ``adamw`` or ``sgd``.
        learning_rates: (R,) peak rates.
        weight_decays: (R,).
        momentum: of SGD.
        clip: largest norm of a copy's gradient; None for any.
    """

    def __init__(
        self,
        head: Copies,
        kind: str,
        learning_rates: Sequence[float],
        weight_decays: Sequence[float],
        momentum: float,
        clip: float | None,
    ) -> None:
        self._rates = learning_rates
        self._clip = clip
        self._members = [list(member.parameters()) for member in head.members]
        self._optimisers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(own, lr=rate, weight_decay=decay)
            if kind == "adamw"
            else torch.optim.SGD(own, lr=rate, weight_decay=decay, momentum=momentum)
            for own, rate, decay in zip(self._members, learning_rates, weight_decays, strict=True)
        ]

    def step(self, factor: float) -> None:
        """Update from the gradients, with every rate times ``factor``, and clear them."""
        for own, rate, optimiser in zip(self._members, self._rates, self._optimisers, strict=True):
            if self._clip is not None:
                nn.utils.clip_grad_norm_(own, self._clip)
            optimiser.param_groups[0]["lr"] = rate * factor
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
