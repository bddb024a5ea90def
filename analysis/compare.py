"""Which settings and heads are as good as the best, and which of these is the cheapest: paired comparisons on the same rows."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from .max_t import max_t
from .paired import hits_of, paired_settings

SIGNIFICANT = 0.05
_SHOWN = 40

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Compared:
    """One setting beside the reference.

    Attributes:
        results: folder of its results, if told.
        head: name of the head.
        setting: block, timestep and pool, in words; draw and crop where they are not 0.
        options: what else it differs in from results that would have the same name.
        seeds: number of seeds that val, test and hits are means over.
        subsets: number of subsets of the training rows, of one size, that they are means over.
        gflop: GFLOP of an image, None if the results do not say.
        bytes: bytes of an image's features, None likewise.
        val: held-out top-1.
        test: test top-1.
        difference: test top-1 less the reference's.
        low: lower end of its simultaneous 95 % interval.
        high: upper end.
        p: p-value of the difference, adjusted for all comparisons.
        won: rows that it gets right and the reference does not, as in McNemar's test.
        lost: rows that the reference gets right and it does not.
    """

    results: str
    head: str
    setting: str
    options: str
    seeds: int
    subsets: int
    gflop: float | None
    bytes: int | None
    val: float
    test: float
    difference: float
    low: float
    high: float
    p: float
    won: float
    lost: float

    @property
    def mark(self) -> str:
        """``=`` if the difference may be chance, ``+`` or ``-`` if it is significant."""
        if self.p > SIGNIFICANT:
            return "="
        return "+" if self.difference > 0 else "-"


@dataclass(frozen=True)
class Comparison:
    """Settings ranked by held-out accuracy.

    Attributes:
        settings: the reference first.
        n_test: number of test rows.
    """

    settings: Sequence[Compared]
    n_test: int

    @property
    def reference(self) -> Compared:
        """The best by held-out accuracy."""
        return self.settings[0]


def compare(results: Sequence[Line], rng: np.random.Generator) -> Comparison:
    """Compare every setting with the one that is best by held-out accuracy, on the same test rows, by :func:`max_t`.

    Fits that differ in their seed only are one setting, whose hits are means; so are those on repeated subsets of the
    training rows. The reference is chosen without test rows, so that its own test value is not the luckiest of many; of
    settings equal in held-out accuracy, it is the first by name.

    Args:
        results: lines as probing writes them, of one store or several; ``results`` names the folder, if there are several.
        rng: of the bootstrap.

    Raises:
        NoResults: fewer than two settings, or results without stored hits.
        DifferentRows: not all are about the same test rows with the same labels.
        ProbeError: stored hits are damaged.
    """
    settings = paired_settings(results)
    hits = np.stack([hits_of(one.lines).sum(axis=0, dtype=np.int32) for one in settings])
    fits = np.array([len(one.lines) for one in settings])
    found = max_t(hits, fits, 0, rng)
    test = (hits.mean(axis=1) / fits).tolist()
    columns = zip(found.difference, found.low, found.high, found.p, found.won, found.lost, strict=True)
    numbers = [[float(value) for value in row] for row in columns]
    compared = [
        Compared(*one.name, one.seeds, one.subsets, one.gflop, one.bytes, one.val, test[k], *numbers[k])
        for k, one in enumerate(settings)
    ]
    return Comparison(compared, hits.shape[1])


@dataclass(frozen=True)
class Guideline:
    """Which setting to use.

    Attributes:
        best: the best by held-out accuracy.
        as_good: it, and those that are not significantly worse than it on the test rows, by held-out accuracy.
        cheapest: of these the one with the fewest GFLOP an image, then the fewest bytes, then the highest held-out
            accuracy; None if the results of one of them do not say what it costs.
    """

    best: Compared
    as_good: Sequence[Compared]
    cheapest: Compared | None


def guideline(comparison: Comparison) -> Guideline:
    """The best setting, those that are as good as far as the test rows can tell, and the cheapest of them."""
    as_good = [one for one in comparison.settings if one.mark != "-"]
    costs = [(one.gflop, one.bytes) for one in as_good]
    known = [(gflop, size, place) for place, (gflop, size) in enumerate(costs) if gflop is not None and size is not None]
    cheapest = as_good[min(known)[2]] if len(known) == len(costs) else None
    return Guideline(comparison.reference, as_good, cheapest)


def describe(comparison: Comparison) -> list[str]:
    """The comparison as a table, ranked by held-out accuracy, and in words."""
    reference, others = comparison.reference, comparison.settings[1:]
    several = len({one.results for one in comparison.settings}) > 1
    header = ["", "head", "setting", "val top-1", "test top-1", "difference", "95 % interval", "adjusted p", "won", "lost"]
    table = [[*header, "GFLOP", "bytes", ""], *(_cells(one, several) for one in comparison.settings[:_SHOWN])]
    table[1][5:10] = ["reference", "", "", "", ""]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = ["  ".join(_aligned(row, widths)).rstrip() for row in table]
    if len(comparison.settings) > _SHOWN:
        lines.append(f"… and {len(comparison.settings) - _SHOWN} more")
    if any(one.subsets > 1 for one in comparison.settings):
        lines.append("subsets of the training rows of one size are pooled like seeds: hits are means over them")
    marks = [one.mark for one in others]
    return [
        *lines,
        f"reference, best by val: {reference.head} on {reference.setting}; {comparison.n_test} test rows, paired",
        f"not significantly different from it (=): {marks.count('=')} of {len(others)}, better (+): {marks.count('+')}, "
        f"worse (-): {marks.count('-')}, at 5 % for all comparisons together",
        *_advice(guideline(comparison), several),
    ]


def _advice(found: Guideline, several: bool) -> list[str]:
    """The guideline in words."""
    one = found.cheapest
    if one is None:
        unknown = sum(one.gflop is None or one.bytes is None for one in found.as_good)
        return [
            f"cheapest of these: not known, the results of {unknown} do not say what they cost (an older version wrote them); "
            "give the store with --store, or run diffssl-probe again into a new --out"
        ]
    about = _words(one, several) + f", {_cost(one)}"
    if one is found.best:
        return [f"cheapest of the {len(found.as_good)} that are not significantly worse: {about}: the reference itself"]
    part = f"{100 * one.gflop / found.best.gflop:.0f} % of the GFLOP" if one.gflop and found.best.gflop else "instead"
    return [
        f"cheapest of the {len(found.as_good)} that are not significantly worse: {about}, {part} of the reference "
        f"({_cost(found.best)})",
        f"test top-1 {one.test:.4f} beside {found.best.test:.4f}: a difference of {one.difference:+.4f} "
        f"[{one.low:+.4f}, {one.high:+.4f}]; the lower end is how much worse it may be",
    ]


def _words(one: Compared, several: bool) -> str:
    text = f"{one.head} on {one.setting}" + (f" ({one.options})" if one.options else "")
    return f"{one.results}: {text}" if several else text


def _cost(one: Compared) -> str:
    return f"{one.gflop:.3g} GFLOP and {one.bytes} bytes an image"


def write_csv(comparison: Comparison, path: Path) -> None:
    """One line a setting, in the order of the table, with the columns of :class:`Compared` and the mark."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Compared)] + ["mark"])
        writer.writeheader()
        writer.writerows(asdict(one) | {"mark": one.mark} for one in comparison.settings)


def _cells(one: Compared, several: bool) -> list[str]:
    about = [one.results] * several + [one.options] * bool(one.options)
    about += [f"{number} {what}" for number, what in ((one.seeds, "seeds"), (one.subsets, "subsets")) if number > 1]
    numbers = [f"{one.difference:+.4f}", f"[{one.low:+.4f}, {one.high:+.4f}]", f"{one.p:.4f}"]
    rows = [f"{round(number, 1):.12g}" for number in (one.won, one.lost)]
    costs = ["" if one.gflop is None else f"{one.gflop:.3g}", "" if one.bytes is None else str(one.bytes)]
    return [one.mark, one.head, one.setting, f"{one.val:.4f}", f"{one.test:.4f}", *numbers, *rows, *costs, "; ".join(about)]


def _aligned(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    """Words to the left, numbers to the right."""
    words = {0, 1, 2, len(row) - 1}
    cells = enumerate(zip(row, widths, strict=True))
    return [cell.ljust(width) if column in words else cell.rjust(width) for column, (cell, width) in cells]
