"""Fits by the protocol: choose on held-out rows, fit again with what was chosen, score the test rows once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from torch import Tensor

from .data import Copy, Moments, ProbeData
from .heads import Copies, Maker, StackedMLP, build_head
from .protocol import Protocol, RowSet, size
from .ranks import ALONE, Ranks
from .scoring import score, score_name
from .train import Recipe, Trainer, Trial, copy_losses, score_head, train_together


@dataclass(frozen=True)
class Material:
    """What all fits of one input share.

    Attributes:
        data: rows to train and choose on.
        test: rows to score, of the same store or of another.
        moments: to standardise with.
        protocol: which rows.
        timesteps: among the input's settings.
        refit: fit again on training and held-out rows.
    """

    data: ProbeData
    test: ProbeData
    moments: Moments
    protocol: Protocol
    timesteps: int
    refit: bool

    def test_labels(self) -> NDArray[Any]:
        """(n, ...) answers of the test rows."""
        return np.concatenate([self.test.targets.values[split][rows] for split, rows in self.protocol.test.items()])

    @property
    def outputs(self) -> int:
        """K, outputs of a head."""
        return len(self.data.targets.names)

    @cached_property
    def answers(self) -> Moments | None:
        """Moments of the numbers to predict over the training rows; None for classes and labels.

        In float32, as the numbers are: what a head is trained on and what its outputs mean are then one scale.
        """
        if self.data.targets.task != "regress":
            return None
        values = np.concatenate([self.data.targets.values[split][rows] for split, rows in self.protocol.moments.items()])
        known = ~np.isnan(values)
        number = np.maximum(known.sum(axis=0), 1)
        mean = np.where(known, values, 0).sum(axis=0, dtype=np.float64) / number
        scale = np.sqrt(np.square(np.where(known, values - mean, 0)).sum(axis=0) / number).astype(np.float32)
        scale[scale == 0] = 1.0
        return Moments(mean.astype(np.float32).astype(np.float64), scale.astype(np.float64))


@dataclass(frozen=True)
class Request:
    """One fit of a torch head.

    Attributes:
        head: its name.
        options: of the head.
        seed: of the start and the order of rows.
        own: makes a user's own head.
        report_best_on_test: score all trials on the test rows too.
    """

    head: str
    options: Mapping[str, Any]
    seed: int
    own: Maker | None = None
    report_best_on_test: bool = False


@dataclass(frozen=True)
class Fit:
    """What came of a fit.

    Attributes:
        chosen: the hyper-parameters, the held-out score, and how the others did.
        scores: (n, K) outputs for the test rows; one for each noise draw of them.
        labels: (n, ...) their answers.
        log_odds: whether the scores of classes are log-odds, so that a softmax makes them probabilities.
        weights: of the fitted head, to be saved; none where it has none.
        answers: moments that undo the scale of the head's outputs, as they are undone in ``scores``; None for no scale.
    """

    chosen: Mapping[str, Any]
    scores: Sequence[NDArray[np.floating]]
    labels: NDArray[Any]
    log_odds: bool = True
    weights: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    answers: Moments | None = None

    @property
    def probabilities(self) -> NDArray[np.floating] | None:
        """(n, K) of the test rows' classes by the first draw; None where the scores are no log-odds of classes."""
        if self.labels.ndim > 1 or not self.log_odds:
            return None
        values: NDArray[np.floating] = softmax(self.scores[0], axis=1)
        return values


def fit_torch_heads(
    material: Material, requests: Sequence[Request], device: torch.device, stream_seed: int, ranks: Ranks = ALONE
) -> list[Fit]:
    """Fit heads together: every trial of each learning rate and weight decay, in the same passes over the features.

    Args:
        material: the input.
        requests: what to fit.
        device: torch device.
        stream_seed: of the order in which row blocks come, which all heads share.
        ranks: the processes that do this together; all return the same.
    """
    protocol, data, moments = material.protocol, material.data, material.moments
    task = data.targets.task
    trials = [_trials(request.options) for request in requests]
    judge = partial(_held_out_losses, material)
    trainers = [_trainer(material, one, own, device, ranks, judge) for one, own in zip(requests, trials, strict=True)]
    train_together(trainers, data, protocol.fit, moments, stream_seed, device)
    chosen = [_choose(material, trainer.head, own, ranks) for trainer, own in zip(trainers, trials, strict=True)]
    for request, trainer, own_choice in zip(requests, trainers, chosen, strict=True):
        best = own_choice["best"]
        if trainer.best_steps[best] < Recipe.of(request.options, size(protocol.fit)).steps:
            own_choice["steps_used"] = trainer.best_steps[best]
        if request.report_best_on_test:
            outputs, labels = _scored(material, trainer.head, material.test, protocol.test)
            own_choice[f"best_of_grid_on_test_{score_name(task)}"] = max(score(task, copy, labels) for copy in outputs)
    if material.refit:
        again = [
            _trainer(material, request, [own[own_choice["best"]]], device, ranks, stop=own_choice.get("steps_used"))
            for request, own, own_choice in zip(requests, trials, chosen, strict=True)
        ]
        train_together(again, data, protocol.refit, moments, stream_seed, device)
        heads = [trainer.head for trainer in again]
    else:
        heads = [trainer.head for trainer in trainers]
        for head, own_choice in zip(heads, chosen, strict=True):
            head.keep(own_choice["best"])
    return [_tested(material, head, own_choice) for head, own_choice in zip(heads, chosen, strict=True)]


def _trainer(
    material: Material,
    request: Request,
    trials: Sequence[Trial],
    device: torch.device,
    ranks: Ranks,
    judge: Callable[[StackedMLP | Copies], Tensor] | None = None,
    stop: int | None = None,
) -> Trainer:
    data = material.data
    rows = material.protocol.fit if judge is not None else material.protocol.refit
    recipe = replace(Recipe.of(request.options, size(rows)), stop=stop)
    head = build_head(
        request.head,
        data.shapes,
        material.timesteps,
        material.outputs,
        len(trials),
        request.options,
        request.seed,
        request.own,
    )
    return Trainer(head.to(device), trials, recipe, data.targets.task, request.seed, judge, material.answers, ranks)


def _trials(options: Mapping[str, Any]) -> list[Trial]:
    return [Trial(rate, decay) for decay in options["weight_decays"] for rate in options["learning_rates"]]


def _held_out_losses(material: Material, head: StackedMLP | Copies) -> Tensor:
    outputs, labels = score_head(head, material.data, material.protocol.select, material.moments)
    targets = torch.from_numpy(labels)
    targets = targets if material.answers is None else material.answers.on(targets.device)(targets)
    return copy_losses(torch.from_numpy(outputs), targets, material.data.targets.task)


def _scored(
    material: Material, head: StackedMLP | Copies, data: ProbeData, rows: RowSet, copy: Copy | None = None
) -> tuple[NDArray[np.floating], NDArray[Any]]:
    """(R, n, K) outputs in the units of the answers, and (n, ...) answers."""
    outputs, labels = score_head(head, data, rows, material.moments, copy)
    return outputs if material.answers is None else material.answers.undone(outputs), labels


def _choose(material: Material, head: StackedMLP | Copies, trials: Sequence[Trial], ranks: Ranks) -> dict[str, Any]:
    """The best trial by held-out score, as what a result line says of it, and its number."""
    task = material.data.targets.task
    outputs, labels = _scored(material, head, material.data, material.protocol.select)
    own = torch.tensor([score(task, copy, labels) for copy in outputs], dtype=torch.float64)
    scores = ranks.agreed(own).tolist()
    best = int(np.argmax(scores))
    rate, decay = trials[best]
    rates, decays = zip(*trials, strict=True)
    is_at_edge = at_edge(rate, rates) or (decay > 0 and at_edge(decay, decays))  # there is nothing below no decay
    return trials[best]._asdict() | choice(scores, best, score_name(task), is_at_edge) | {"best": best}


def _tested(material: Material, head: StackedMLP | Copies, chosen: Mapping[str, Any]) -> Fit:
    split = next(iter(material.protocol.test))
    scored = [
        _scored(material, head, material.test, material.protocol.test, copy) for copy in material.test.scored_copies(split)
    ]
    weights = {name: value.cpu().numpy() for name, value in head.state(0).items()}
    shown = {name: value for name, value in chosen.items() if name != "best"}
    return Fit(shown, [outputs[0] for outputs, _ in scored], scored[0][1], True, weights, material.answers)


def at_edge(value: float, grid: Sequence[float]) -> bool:
    """Whether a choice is the first or last of several."""
    return len(set(grid)) > 1 and value in (min(grid), max(grid))


def choice(scores: Sequence[float], best: int, name: str, is_at_edge: bool) -> dict[str, Any]:
    """What a result line says of a choice by held-out score."""
    grid = [value if np.isfinite(value) else None for value in scores]  # JSON has no infinity
    return {f"val_{name}": grid[best], f"val_{name}_grid": grid, "at_edge": is_at_edge}
