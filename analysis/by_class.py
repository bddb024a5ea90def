"""Which setting is best at which class, chosen on one half of the test rows and measured on the other."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from ..probe.bootstrap import mean_of_ratios, with_intervals
from .complement import first_hits, halves
from .paired import Setting
from .test_set import TestSet

_SHOWN = 40


@dataclass(frozen=True)
class ClassBest:
    """The setting that is best at one class.

    Attributes:
        name: of the class.
        setting: head, block, timestep and pool in words.
        block: its block; several with commas.
        timestep: its timestep, likewise; empty for an encoder without.
        chosen: its accuracy at the class on the rows that it was chosen on.
        rows: rows of the class that the following numbers are of.
        accuracy: its accuracy at the class.
        best: that of the setting that is best by held-out accuracy of all classes.
        difference: ``accuracy`` less ``best``.
        won: rows that it gets right and the best does not.
        lost: rows that the best gets right and it does not.
    """

    name: str
    setting: str
    block: str
    timestep: str
    chosen: float
    rows: int
    accuracy: float
    best: float
    difference: float
    won: int
    lost: int


@dataclass(frozen=True)
class ByClass:
    """The best setting of each class.

    Attributes:
        classes: those with rows on both halves, in their order.
        left_out: how many classes have none on one half.
        gain: mean over classes of their differences, None without any class.
        gain_low: lower end of its 95 % bootstrap interval over the rows that were not chosen on.
        gain_high: upper end.
    """

    classes: Sequence[ClassBest]
    left_out: int
    gain: float | None
    gain_low: float | None
    gain_high: float | None


def best_by_class(settings: Sequence[Setting], tested: TestSet, rng: np.random.Generator) -> ByClass:
    """Choose the setting of each class on half of the test rows, and measure it on the other half.

    Of settings that are equally good at a class, it is the one with the highest held-out accuracy. Of several fits of a
    setting, the first counts.

    Args:
        settings: of :func:`~.paired.paired_settings`, the best by held-out accuracy first.
        tested: their test rows.
        rng: of the bootstrap.
    """
    hits = first_hits(settings)
    choose, report = halves(hits.shape[1])
    right, total = _by_class(hits[:, choose], tested.labels[choose], len(tested.classes))
    choice = right.argmax(axis=0)  # (C,) settings are in the order of their held-out accuracy, so the first of equals
    labels = tested.labels[report]
    own, single = hits[choice[labels], report], hits[0, report]
    rows = np.bincount(labels, minlength=len(total))
    there = (total > 0) & (rows > 0)
    several = len({one.results for one in settings}) > 1
    classes = []
    for number in np.flatnonzero(there).tolist():
        mine, setting = labels == number, settings[int(choice[number])]
        pair = own[mine], single[mine]
        accuracy, best = float(pair[0].mean()), float(pair[1].mean())
        won, lost = int((pair[0] & ~pair[1]).sum()), int((pair[1] & ~pair[0]).sum())
        chosen = float(right[choice[number], number] / total[number])
        about = (tested.classes[number], setting.describe(several), _listed(setting, "block"), _listed(setting, "timestep"))
        classes.append(ClassBest(*about, chosen, int(mine.sum()), accuracy, best, accuracy - best, won, lost))
    measured = there[labels]
    gain = _gain((own.astype(np.float64) - single)[measured], labels[measured], rng) if classes else {}
    return ByClass(
        classes, int((total + rows > 0).sum()) - len(classes), *(gain.get(f"gain{e}") for e in ("", "_low", "_high"))
    )


def describe(found: ByClass) -> list[str]:
    """The classes as a table, and what choosing by class is worth."""
    header = ["class", "best at it", "where chosen", "accuracy", "of the best by val", "difference", "rows"]
    table = [header, *(_cells(one) for one in found.classes[:_SHOWN])]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    words = (0, 1)
    lines = [
        "  ".join(cell.ljust(w) if i in words else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
        for row in table
    ]
    if len(found.classes) > _SHOWN:
        lines.append(f"… and {len(found.classes) - _SHOWN} more")
    if found.left_out:
        lines.append(f"{found.left_out} classes have no row on one half of the test rows and are left out")
    lines.append(
        "chosen on one half of the test rows, accuracies on the other: the best of many looks better where it was chosen"
    )
    if found.gain is not None:
        interval = f"[{found.gain_low:+.4f}, {found.gain_high:+.4f}]"
        lines.append(
            f"a setting of its own for every class: {found.gain:+.4f} {interval} above the best by val, mean over classes"
        )
    return lines


def write_csv(found: ByClass, path: Path) -> None:
    """One line a class, with the columns of :class:`ClassBest`."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(ClassBest)])
        writer.writeheader()
        writer.writerows(asdict(one) for one in found.classes)


def _by_class(hits: NDArray[np.bool_], labels: NDArray[np.int64], classes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(S, C) rows of each class that each setting gets right, of (S, n) hits, and (C,) rows of each class."""
    right = np.stack([np.bincount(labels[own], minlength=classes) for own in hits])
    return right, np.bincount(labels, minlength=classes)


def _gain(difference: NDArray[np.float64], labels: NDArray[np.int64], rng: np.random.Generator) -> dict[str, float | None]:
    """Mean over classes of the (n,) difference of hits, and its interval."""
    n, names = len(labels), np.unique(labels)
    member = sparse.csr_array((np.ones(n), (np.searchsorted(names, labels), np.arange(n))), shape=(len(names), n))
    weighted = member.multiply(difference).tocsr()
    return with_intervals(lambda counts: {"gain": mean_of_ratios(weighted @ counts, member @ counts)}, n, rng)


def _cells(one: ClassBest) -> list[str]:
    numbers = [f"{value:.3f}" for value in (one.chosen, one.accuracy, one.best)]
    return [one.name, one.setting, *numbers, f"{one.difference:+.3f}", str(one.rows)]


def _listed(setting: Setting, name: str) -> str:
    value = setting.lines[0][name]
    values = dict.fromkeys(value if isinstance(value, list) else [value])
    return ",".join(str(one) for one in values if one is not None)
