"""StackedAdamW against torch.optim.AdamW, copy by copy."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from diffssl.probe.optim import StackedAdamW
from torch import Tensor, nn

STEPS = 20
RATES = [1e-4, 1e-2, 0.3]


def constant(_: int) -> float:
    return 1.0


def cosine(step: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * step / STEPS))


def losses(parameters: list[Tensor], step: int) -> Tensor:
    """A loss per copy that pulls in different directions at different steps."""
    total = torch.zeros(len(parameters[0]), dtype=parameters[0].dtype)
    for i, parameter in enumerate(parameters):
        target = torch.sin(torch.arange(parameter[0].numel(), dtype=parameter.dtype) + step + i).view(parameter[0].shape)
        total = total + (parameter - target).square().flatten(1).sum(1)
    return total


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("decays", [[0.0] * len(RATES), [0.5 * copy for copy in range(len(RATES))]])
@pytest.mark.parametrize("schedule", [constant, cosine])
def test_every_copy_follows_adamw_with_its_own_rate(
    dtype: torch.dtype, decays: list[float], schedule: Callable[[int], float]
) -> None:
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(len(RATES), *shape, generator=generator, dtype=dtype) for shape in ((5, 4), (1, 4))]
    stacked = [nn.Parameter(value.clone()) for value in start]
    ours = StackedAdamW(stacked, torch.tensor(RATES, dtype=dtype), torch.tensor(decays, dtype=dtype))
    plain = [[nn.Parameter(value[copy : copy + 1].clone()) for value in start] for copy in range(len(RATES))]
    theirs = [
        torch.optim.AdamW(own, lr=rate, weight_decay=decay) for own, rate, decay in zip(plain, RATES, decays, strict=True)
    ]
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimiser, schedule) for optimiser in theirs]
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    for step in range(STEPS):
        losses(list(stacked), step).sum().backward()  # type: ignore[no-untyped-call]
        ours.step(schedule(step))
        for copy, (optimiser, scheduler) in enumerate(zip(theirs, schedules, strict=True)):
            losses(list(plain[copy]), step).sum().backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            scheduler.step()
            optimiser.zero_grad()
            for parameter, own in zip(stacked, plain[copy], strict=True):
                torch.testing.assert_close(parameter[copy], own[0], rtol=tolerance, atol=tolerance)
    for parameter, value in zip(stacked, start, strict=True):
        assert ((parameter - value).abs().flatten(1).amax(1) > 1e-4).all()  # every copy moved


def test_betas_and_eps_are_those_of_adamw() -> None:
    start = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    stacked = nn.Parameter(start.clone())
    ours = StackedAdamW([stacked], torch.tensor([0.1, 0.2], dtype=torch.float64), torch.zeros(2), betas=(0.5, 0.6), eps=0.1)
    plain = nn.Parameter(start[1:].clone())
    theirs = torch.optim.AdamW([plain], lr=0.2, betas=(0.5, 0.6), eps=0.1, weight_decay=0.0)
    for step in range(STEPS):
        losses([stacked], step).sum().backward()  # type: ignore[no-untyped-call]
        ours.step(1.0)
        losses([plain], step).sum().backward()  # type: ignore[no-untyped-call]
        theirs.step()
        theirs.zero_grad()
    torch.testing.assert_close(stacked[1], plain[0], rtol=1e-12, atol=1e-12)


def test_a_step_clears_the_gradients() -> None:
    parameter = nn.Parameter(torch.ones(2, 3))
    optimiser = StackedAdamW([parameter], torch.tensor([0.1, 0.2]), torch.zeros(2))
    parameter.square().sum().backward()  # type: ignore[no-untyped-call]
    optimiser.step(1.0)
    assert parameter.grad is None


def test_a_factor_of_zero_leaves_the_parameters() -> None:
    parameter = nn.Parameter(torch.ones(2, 3))
    optimiser = StackedAdamW([parameter], torch.tensor([0.1, 0.2]), torch.full((2,), 0.5))
    parameter.square().sum().backward()  # type: ignore[no-untyped-call]
    optimiser.step(0.0)
    assert torch.equal(parameter, torch.ones(2, 3))
