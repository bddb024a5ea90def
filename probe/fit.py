"""One fit by the protocol: choose on held-out rows, fit again with what was chosen, score the test rows once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .data import Moments, SettingData
from .logreg import accuracy_path, fit_regression
from .metrics import hits
from .protocol import Protocol
from .spec import C_GRID, ProbeSpec
from .train import TrainOptions, Trial, pick_device, score_head, train_head


@dataclass(frozen=True)
class Fit:
    """What came of a fit.

    Attributes:
        chosen: the hyper-parameter, its held-out accuracy ``val_top1``, and how the others did.
        scores: (n, K) logits or decision values of the test rows.
        labels: (n,) their labels.
    """

    chosen: Mapping[str, Any]
    scores: NDArray[np.floating]
    labels: NDArray[np.int64]


def fit_torch_head(
    data: SettingData, moments: Moments, protocol: Protocol, classes: int, spec: ProbeSpec, head: str, seed: int
) -> Fit:
    """Fit ``linear`` or ``mlp``, choosing learning rate and weight decay; ``seed`` is of the start and the order of rows."""
    device = pick_device(spec.device)
    hidden = tuple(spec.hidden) if head == "mlp" else ()
    chosen = spec.head_options(head)
    options = TrainOptions(hidden, chosen["steps"], spec.batch_size, device)
    rates, decays = chosen["learning_rates"], chosen["weight_decays"]
    trials = [Trial(rate, decay) for decay in decays for rate in rates]
    model = train_head(data, protocol.fit, moments, classes, trials, options, seed)
    logits, labels = score_head(model, data, protocol.select, moments, device)
    accuracies = [float(hits(copy, labels, 1).mean()) for copy in logits]
    best = int(np.argmax(accuracies))
    if spec.refit:
        model = train_head(data, protocol.refit, moments, classes, [trials[best]], options, seed)
    else:
        model.keep(best)
    logits, labels = score_head(model, data, protocol.test, moments, device)
    rate, decay = trials[best]
    at_edge = _at_edge(rate, rates) or (decay > 0 and _at_edge(decay, decays))  # there is nothing below no decay
    return Fit(trials[best]._asdict() | _choice(accuracies, best, at_edge), logits[0], labels)


def fit_logreg(data: SettingData, moments: Moments, protocol: Protocol, classes: int, refit: bool) -> Fit:
    """Fit logistic regression, choosing C."""
    features, labels = data.load(protocol.fit, moments)
    held_out, held_out_labels = data.load(protocol.select, moments)
    accuracies, converged = accuracy_path(features, labels, held_out, held_out_labels, C_GRID)
    best = int(np.argmax(accuracies))
    if refit:
        features, labels = data.load(protocol.refit, moments)
    fitted = fit_regression(features, labels, C_GRID[best])
    test, test_labels = data.load(protocol.test, moments)
    chosen = {"C": C_GRID[best], "converged": fitted.converged, "converged_grid": converged}
    return Fit(chosen | _choice(accuracies, best, _at_edge(C_GRID[best], C_GRID)), fitted.scores(test, classes), test_labels)


def _at_edge(value: float, grid: Sequence[float]) -> bool:
    return len(grid) > 1 and value in (min(grid), max(grid))


def _choice(accuracies: list[float], best: int, at_edge: bool) -> dict[str, Any]:
    return {"val_top1": accuracies[best], "val_top1_grid": accuracies, "at_edge": at_edge}
