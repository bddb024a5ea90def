"""Accuracy over blocks or over noise as lines with bands, from maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .table import AccuracyMap, NoResults

OVER = ("block", "timestep", "log-snr")


@dataclass(frozen=True)
class Curve:
    """One line.

    Attributes:
        label: what it is of.
        x: (n,) ascending block numbers, timesteps or log-SNRs; empty for a value that has no place on the axis: that of an
            encoder without timesteps, over noise.
        y: (n,) accuracy, or (1,) of that value.
        low: lower ends of 95 % intervals, one an accuracy.
        high: upper ends.
    """

    label: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


@dataclass(frozen=True)
class Panel:
    """Lines that are drawn together.

    Attributes:
        title: what they have in common.
        curves: the lines.
        ordered: whether they are of consecutive blocks or timesteps, and not of things without an order.
    """

    title: str
    curves: Sequence[Curve]
    ordered: bool


def make_curves(maps: Sequence[AccuracyMap], over: str, value: str, best: bool = False) -> list[Panel]:
    """Lines over one axis of maps: a line each block or timestep of a map, a panel a map; or one panel, a line a map.

    Args:
        maps: to take lines of.
        over: ``"block"``, a line a timestep; ``"timestep"``, a line a block; ``"log-snr"``, the same on an axis that models
            of other schedules share.
        value: ``"val"`` or ``"test"``.
        best: only the best line of each map: the one with the highest held-out accuracy.

    Raises:
        NoResults: the results do not say which log-SNR they are of, or there is none (no noise).
        ValueError: there is no such axis.
    """
    if over not in OVER:
        raise ValueError(f"an axis is one of {', '.join(OVER)}, got {over!r}")
    lines = _over_blocks if over == "block" else _over_noise
    if best:
        kind = "timestep" if over == "block" else "block"
        chosen = [lines(one, over, value, one.best[1 if over == "block" else 0], f"{one.title}, ") for one in maps]
        return [Panel(f"best {kind} of each by held-out accuracy", chosen, False)]
    panels = []
    for one in maps:
        count = len(one.timesteps) if over == "block" else len(one.blocks)
        panels.append(Panel(one.title, [lines(one, over, value, i, "") for i in range(count)], True))
    return panels


def _over_blocks(one: AccuracyMap, _over: str, value: str, column: int, prefix: str) -> Curve:
    step = one.timesteps[column]
    label = f"{prefix}timestep {step}" if step is not None else f"{prefix}no timestep"
    return _curve(label, np.array(one.blocks, dtype=np.float64), one, value, lambda grid: grid[:, column])


def _over_noise(one: AccuracyMap, over: str, value: str, row: int, prefix: str) -> Curve:
    label = f"{prefix}block {one.blocks[row]}"
    if one.timesteps == [None]:
        return _curve(label, np.array([]), one, value, lambda grid: grid[row])
    places = [_log_snr(one, column) for column in range(len(one.timesteps))] if over == "log-snr" else one.timesteps
    return _curve(label, np.array(places, dtype=np.float64), one, value, lambda grid: grid[row])


def _curve(
    label: str,
    x: NDArray[np.float64],
    one: AccuracyMap,
    value: str,
    line: Callable[[NDArray[np.float64]], NDArray[np.float64]],
) -> Curve:
    """A line of a map without the places that have no result, by ascending x."""
    numbers = np.stack([line(grid) for grid in one.accuracy(value)])
    there = np.isfinite(numbers[0])
    if not len(x):
        return Curve(label, x, *numbers[:, there])
    order = np.argsort(x[there], kind="stable")
    return Curve(label, x[there][order], *numbers[:, there][:, order])


def _log_snr(one: AccuracyMap, column: int) -> float:
    found = one.log_snr[column]
    if found is None:
        raise NoResults(
            f"{one.title}: the results do not say the log-SNR of timestep {one.timesteps[column]}; if an older version wrote "
            "them, give the store with --store, or run diffssl-probe again into a new --out; clean images (--noise none) have "
            "no log-SNR"
        )
    return found
