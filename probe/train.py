"""Training the torch heads: all trials of all heads and seeds in the same pass over the features."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .data import Batches, Buffer, Copy, Moments, ProbeData
from .errors import ProbeError
from .heads import Copies, StackedMLP
from .optim import CopiesOptimiser, Optimiser, StackedAdamW, StackedSGD
from .protocol import RowSet
from .ranks import ALONE, Ranks

_SCORED = 512  # rows that a head of maps scores at once


class Trial(NamedTuple):
    """Hyper-parameters of one copy of a head."""

    learning_rate: float
    weight_decay: float


@dataclass(frozen=True)
class Recipe:
    """How a head is trained.

    Attributes:
        optimiser: ``adamw`` or ``sgd``.
        momentum: of ``sgd``.
        steps: optimiser steps that the schedule is made for.
        batch_size: rows of a step.
        schedule: ``cosine`` from the peak to zero, ``constant``, or ``steps``, a tenth after each quarter.
        warmup: steps of linear rise at the beginning, at most half of all.
        clip: largest norm of a copy's gradient; None for any.
        evaluate_every: steps between looks at the held-out loss; None for never. The weights of the best look are kept.
        patience: looks without a better loss for any copy after which training ends.
        stop: end after so many steps, by the same schedule; None for ``steps``.
    """

    optimiser: str
    momentum: float
    steps: int
    batch_size: int
    schedule: str
    warmup: int
    clip: float | None
    evaluate_every: int | None
    patience: int
    stop: int | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any], n_rows: int) -> Recipe:
        """The recipe in a head's options; ``epochs`` there become steps over ``n_rows`` rows."""
        batch_size = min(options["batch_size"], n_rows)
        steps = options.get("steps") or math.ceil(options["epochs"] * n_rows / batch_size)
        names = ("optimiser", "momentum", "schedule", "clip", "evaluate_every", "patience")
        warmup = min(options["warmup"], steps // 2)  # so that few steps reach the peak rate, too
        return cls(steps=steps, batch_size=batch_size, warmup=warmup, **{name: options[name] for name in names})

    def factor(self, step: int) -> float:
        """What the peak rate is multiplied with at a step, counted from 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        return 1.0 if self.schedule == "constant" else 0.1 ** math.floor(4 * done)


class Trainer:
    """Trains the copies of one head on what it is fed.

    Args:
        head: on its device.
        trials: one a copy.
        recipe: how.
        task: see :class:`~diffssl.probe.targets.Targets`.
        seed: of the order of rows, and of whatever the head itself draws.
        judge: (R,) held-out loss of each copy.
        answers: moments that the answers are standardised with; None to take them as they are.
        ranks: the processes that train it together.

    Raises:
        ProbeError: the ranks cannot train it together.
    """

    def __init__(
        self,
        head: StackedMLP | Copies,
        trials: Sequence[Trial],
        recipe: Recipe,
        task: str,
        seed: int,
        judge: Callable[[StackedMLP | Copies], Tensor] | None = None,
        answers: Moments | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        ranks.start(head, recipe.batch_size)
        self.head = head
        self._device = next(head.parameters()).device
        self._answers = None if answers is None else answers.on(self._device)
        self._ranks = ranks
        self._optimiser = _optimiser(head, trials, recipe)
        self._recipe = recipe
        self._task = task
        self._judge = judge if recipe.evaluate_every else None
        self._batches = Batches(recipe.batch_size, np.random.default_rng(seed))
        self._random = _Random(seed + ranks.rank, self._device)  # each rank drops out other units
        self._step = 0
        self._looks_since_best = 0
        self._best: list[tuple[float, int, dict[str, Tensor]] | None] = [None] * len(trials)

    @property
    def done(self) -> bool:
        """Whether there is nothing left to train."""
        return self._step >= (self._recipe.stop or self._recipe.steps) or self._looks_since_best >= self._recipe.patience

    @property
    def best_steps(self) -> list[int]:
        """Per copy: after how many steps its held-out loss was best, or how many there were."""
        return [self._step if best is None else best[1] for best in self._best]

    def feed(self, buffer: Buffer) -> None:
        """Train on the rows of a buffer, in an order of this trainer's own."""
        with self._random.used():
            for features, targets in self._batches.cut(buffer):
                if self.done:
                    break
                self._train(features, targets)

    def finish(self) -> None:
        """Take back the best weights of each copy, if they were looked for."""
        for copy, best in enumerate(self._best):
            if best is not None:
                self.head.load(copy, best[2])

    def _train(self, features: Tensor, targets: Tensor) -> None:
        self.head.train()
        targets = targets if self._answers is None else self._answers(targets)
        own = self._ranks.share(len(targets))
        batch = None if self._ranks.alone else targets
        # Each copy gets the gradient of its own loss.
        loss = copy_losses(self.head(features[own]), targets[own], self._task, batch).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        self._ranks.add_gradients(self.head)
        self._optimiser.step(self._recipe.factor(self._step))
        self._step += 1
        if self._judge is not None and (self._step % (self._recipe.evaluate_every or 1) == 0 or self.done):
            self._look(self._judge)

    def _look(self, judge: Callable[[StackedMLP | Copies], Tensor]) -> None:
        self._looks_since_best += 1
        for copy, loss in enumerate(self._ranks.agreed(judge(self.head)).tolist()):
            best = self._best[copy]
            if math.isfinite(loss) and (best is None or loss < best[0]):
                state = {name: value.detach().clone() for name, value in self.head.state(copy).items()}
                self._best[copy] = (loss, self._step, state)
                self._looks_since_best = 0


def train_together(
    trainers: Sequence[Trainer], data: ProbeData, rows: RowSet, moments: Moments, seed: int, device: torch.device
) -> None:
    """Feed all trainers the same buffers until each is done. What a trainer learns does not depend on the others.

    Args:
        trainers: on ``device``.
        data: the settings.
        rows: to train on.
        moments: to standardise with.
        seed: of the order in which row blocks come.
        device: torch device.
    """
    buffers = data.buffers(rows, moments, np.random.default_rng(seed), device)
    while busy := [trainer for trainer in trainers if not trainer.done]:
        buffer = next(buffers)
        for trainer in busy:
            trainer.feed(buffer)
    for trainer in trainers:
        trainer.finish()


def copy_losses(outputs: Tensor, targets: Tensor, task: str, batch: Tensor | None = None) -> Tensor:
    """(R,) mean loss of each copy: cross-entropy, binary cross-entropy or squared error, of what is known.

    Args:
        outputs: (R, n, K).
        targets: (n,) class numbers, or (n, K) with NaN where unknown.
        task: see :class:`~diffssl.probe.targets.Targets`.
        batch: (m, ...) targets of the batch that these rows are a part of: its parts' losses add up to its mean.
    """
    copies = len(outputs)
    if task == "classify":
        losses = F.cross_entropy(outputs.flatten(0, 1), targets.expand(copies, -1).flatten(), reduction="none")
        each = losses.view(copies, -1)
        return each.mean(dim=1) if batch is None else each.sum(dim=1) / len(batch)
    known = ~torch.isnan(targets)
    wanted = torch.where(known, targets, 0.0).expand_as(outputs)
    if task == "multilabel":
        losses = F.binary_cross_entropy_with_logits(outputs, wanted, reduction="none")
    else:
        losses = (outputs - wanted).square()
    answers = known.sum() if batch is None else (~torch.isnan(batch)).sum()
    return (losses * known).sum(dim=(1, 2)) / answers


@torch.inference_mode()
def score_head(
    head: StackedMLP | Copies, data: ProbeData, rows: RowSet, moments: Moments, copy: Copy | None = None
) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """(R, n, K) outputs and (n, ...) targets of rows, in order; ``copy``: of the rows, None for the first."""
    device = next(head.parameters()).device
    head.eval()
    outputs, targets = [], []
    for features, own in data.in_order(rows, moments, copy):
        on_device = torch.from_numpy(features).to(device)
        parts = torch.split(on_device, _SCORED) if isinstance(head, Copies) else (on_device,)
        outputs += [head(part).cpu().numpy() for part in parts]
        targets.append(own)
    return np.concatenate(outputs, axis=1), np.concatenate(targets)


def pick_device(name: str) -> torch.device:
    """The torch device; ``auto`` is the first GPU, or the CPU. Raises ``ProbeError`` where it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ProbeError(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


class _Random:
    """A state of torch's global generators that is a trainer's own: some modules draw from them, for dropout say."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self._devices = [device] if device.type == "cuda" else []
        self._seed: int | None = seed
        self._states: list[Tensor] = []

    @contextmanager
    def used(self) -> Iterator[None]:
        """Use the state, and give the global one back."""
        with torch.random.fork_rng(devices=self._devices):
            if self._seed is not None:
                # Not torch.manual_seed, which seeds every GPU of the process.
                torch.default_generator.manual_seed(self._seed)
                for device in self._devices:
                    with torch.cuda.device(device):
                        torch.cuda.manual_seed(self._seed)
                self._seed = None
            else:
                torch.set_rng_state(self._states[0])
                for device, state in zip(self._devices, self._states[1:], strict=True):
                    torch.cuda.set_rng_state(state, device)
            yield
            self._states = [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in self._devices)]


def _optimiser(head: StackedMLP | Copies, trials: Sequence[Trial], recipe: Recipe) -> Optimiser:
    rates, decays = [trial.learning_rate for trial in trials], [trial.weight_decay for trial in trials]
    if isinstance(head, Copies):
        return CopiesOptimiser(head, recipe.optimiser, rates, decays, recipe.momentum, recipe.clip)
    device = next(head.parameters()).device
    if recipe.clip is not None:
        raise ValueError(f"linear and mlp heads have no clipping, got {recipe.clip}; their loss needs none")
    per_copy = (torch.tensor(rates, device=device), torch.tensor(decays, device=device))
    if recipe.optimiser == "sgd":
        return StackedSGD(head.parameters(), *per_copy, momentum=recipe.momentum)
    return StackedAdamW(head.parameters(), *per_copy)
