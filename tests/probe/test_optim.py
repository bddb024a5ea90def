"""Optimisers of copies against torch's own, copy by copy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffssl.probe.heads import Copies
from diffssl.probe.optim import CopiesOptimiser, StackedAdamW, StackedSGD
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
@pytest.mark.parametrize("kind", ["adamw", "sgd", "momentum"])
def test_every_copy_follows_torch_with_its_own_rate(
    dtype: torch.dtype, decays: list[float], schedule: Callable[[int], float], kind: str
) -> None:
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(len(RATES), *shape, generator=generator, dtype=dtype) for shape in ((5, 4), (1, 4))]
    stacked = [nn.Parameter(value.clone()) for value in start]
    per_copy = torch.tensor(RATES, dtype=dtype), torch.tensor(decays, dtype=dtype)
    more: dict[str, Any] = {"momentum": 0.9} if kind == "momentum" else {}
    ours = StackedAdamW(stacked, *per_copy) if kind == "adamw" else StackedSGD(stacked, *per_copy, **more)
    plain = [[nn.Parameter(value[copy : copy + 1].clone()) for value in start] for copy in range(len(RATES))]
    theirs = [
        torch.optim.AdamW(own, lr=rate, weight_decay=decay)
        if kind == "adamw"
        else torch.optim.SGD(own, lr=rate, weight_decay=decay, **more)
        for own, rate, decay in zip(plain, RATES, decays, strict=True)
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


Stacked = type[StackedAdamW] | type[StackedSGD]
STACKED = pytest.mark.parametrize("stacked", [StackedAdamW, StackedSGD])


@STACKED
def test_a_step_clears_the_gradients(stacked: Stacked) -> None:
    parameter = nn.Parameter(torch.ones(2, 3))
    optimiser = stacked([parameter], torch.tensor([0.1, 0.2]), torch.zeros(2))
    parameter.square().sum().backward()  # type: ignore[no-untyped-call]
    optimiser.step(1.0)
    assert parameter.grad is None


@STACKED
def test_a_factor_of_zero_leaves_the_parameters(stacked: Stacked) -> None:
    parameter = nn.Parameter(torch.ones(2, 3))
    optimiser = stacked([parameter], torch.tensor([0.1, 0.2]), torch.full((2,), 0.5))
    parameter.square().sum().backward()  # type: ignore[no-untyped-call]
    optimiser.step(0.0)
    assert torch.equal(parameter, torch.ones(2, 3))


# Copies of modules


class Own(nn.Module):
    """Two layers on one map."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 3))

    def forward(self, maps: list[Tensor]) -> Tensor:
        logits: Tensor = self.layers(maps[0])
        return logits


def make_copies(n: int) -> Copies:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Copies(n, Own().double(), [(3, 2, 2)])


def batch(step: int, size: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return size * torch.randn(8, 12, generator=generator, dtype=torch.float64), torch.arange(8) % 3


@pytest.mark.parametrize(("kind", "momentum"), [("adamw", 0.0), ("sgd", 0.0), ("sgd", 0.9)])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_every_module_follows_torch_with_its_own_rate_and_clip(kind: str, momentum: float, clip: float | None) -> None:
    decays = [0.0, 0.5, 1.0]
    head = make_copies(len(RATES))
    ours = CopiesOptimiser(head, kind, RATES, decays, momentum, clip)
    for step in range(STEPS):
        features, labels = batch(step, 4.0)
        sum(nn.functional.cross_entropy(logits, labels) for logits in head(features)).backward()  # type: ignore[union-attr]
        ours.step(cosine(step))
        assert all(parameter.grad is None for parameter in head.parameters())
    for copy, (rate, decay) in enumerate(zip(RATES, decays, strict=True)):
        alone = make_copies(1)
        theirs: torch.optim.Optimizer = torch.optim.AdamW(alone.parameters(), lr=rate, weight_decay=decay)
        if kind == "sgd":
            theirs = torch.optim.SGD(alone.parameters(), lr=rate, weight_decay=decay, momentum=momentum)
        schedule = torch.optim.lr_scheduler.LambdaLR(theirs, cosine)
        clipped = 0
        for step in range(STEPS):
            features, labels = batch(step, 4.0)
            theirs.zero_grad()
            nn.functional.cross_entropy(alone(features)[0], labels).backward()  # type: ignore[no-untyped-call]
            if clip is not None:
                clipped += bool(nn.utils.clip_grad_norm_(alone.parameters(), clip) > clip)
            theirs.step()
            schedule.step()
        assert (clipped > 0) == (clip is not None)
        for name, value in alone.state(0).items():
            torch.testing.assert_close(head.state(copy)[name], value, rtol=1e-12, atol=1e-12)


def test_a_large_gradient_of_one_copy_does_not_hold_back_the_others() -> None:
    moved = []
    for scale in (1.0, 1e6):
        head = make_copies(2)
        before = {name: value.clone() for name, value in head.state(0).items()}
        optimiser = CopiesOptimiser(head, "sgd", [0.1, 0.1], [0.0, 0.0], 0.0, 1.0)
        features, labels = batch(0)
        one, other = (nn.functional.cross_entropy(logits, labels) for logits in head(features))
        (0.1 * one + scale * other).backward()  # type: ignore[no-untyped-call]
        optimiser.step(1.0)
        moved.append(torch.cat([(value - before[name]).flatten() for name, value in head.state(0).items()]))
    assert torch.equal(*moved)
    assert moved[0].any()
