"""AdamW with a learning rate and a weight decay of its own for each copy of a stacked head.

torch.optim.AdamW has one of each a parameter group, and the copies live in one tensor, which is what makes training them
together cheap.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


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
