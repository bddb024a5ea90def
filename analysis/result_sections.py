"""Sections of the report that come from results: maps, curves, comparison, confusions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..probe.table import describe_setting
from ..store import FeatureStore, IncompleteFeatures, UnknownFeatures
from .chart import Chart, Line
from .compare import Compared, Comparison, guideline
from .complement import Complement, complement
from .confusion import ConfusedPair, confusion, most_confused
from .curves import Curve, make_curves
from .page import Heat, Part, Picture, Pictures, Section, Table, Words
from .paired import Setting
from .scope import evenly
from .table import AccuracyMap
from .test_set import OtherRows, TestSet, find_test_set

Result = Mapping[str, Any]

_MOST_CLASSES = 60  # of which a matrix can still be read
_EXAMPLES = 8
_PAIRS = 6
_NAMED = 3
_MOST_LINES = 12


def maps_section(maps: Sequence[AccuracyMap]) -> Section:
    """Held-out accuracy over block and timestep, a heat table a map."""
    high = max(float(np.nanmax(one.val)) for one in maps)
    low = min(float(np.nanmin(one.val)) for one in maps)
    parts = [
        Heat(
            caption=f"{one.title}: held-out top-1, %",
            rows=[str(block) for block in one.blocks],
            columns=["" if step is None else str(step) for step in one.timesteps],
            row_axis="block",
            column_axis="timestep",
            values=100 * one.val,
            hover=[[_hover(one, row, column) for column in range(len(one.timesteps))] for row in range(len(one.blocks))],
            low=100 * low,
            high=100 * high,
            tags=_tags(one),
        )
        for one in maps
    ]
    return Section(
        "Maps",
        parts,
        "Accuracy on held-out training rows, by which settings are chosen; the test accuracy of a cell, with its 95 % "
        "interval, is shown when the pointer is on it, and is not for choosing.",
    )


def curves_section(maps: Sequence[AccuracyMap]) -> Section:
    """Held-out accuracy over blocks, and over noise."""
    axes = {"block": "block", "timestep": "timestep", "log-snr": "log-SNR (noise falls to the right)"}
    parts = []
    for one in maps:
        for over, axis in axes.items():
            if (over == "block" or one.timesteps != [None]) and (over != "log-snr" or None not in one.log_snr):
                (panel,) = make_curves([one], over, "val")
                drawn = [curve for curve in panel.curves if len(curve.x)]
                shown = drawn if len(drawn) <= _MOST_LINES else evenly(drawn, _MOST_LINES)
                lines = [_line(curve) for curve in shown]
                caption = f"{one.title}: over {axis.partition(' ')[0]}"
                caption += f" ({len(shown)} of {len(drawn)} lines)" if len(shown) < len(drawn) else ""
                parts.append(Chart(caption, axis, "held-out top-1, %", lines, {**_tags(one), "over": over}))
    return Section("Curves", parts, "The same numbers as lines; bands are 95 % intervals.")


def guideline_section(comparison: Comparison) -> Section:
    """Which setting to use: the best by held-out accuracy, and the cheapest that is not significantly worse."""
    found = guideline(comparison)
    header = ["", "head", "setting", "held-out", "test", "difference", "low", "high", "GFLOP an image", "bytes an image"]
    several = len({one.results for one in comparison.settings}) > 1
    rows = [_guided("best by held-out accuracy", found.best, several)]
    if found.cheapest is not None:
        rows.append(_guided("cheapest of it and these", found.cheapest, several))
    parts: list[Part] = [
        Table(
            f"{len(found.as_good) - 1} of the {len(comparison.settings) - 1} others are not significantly worse than the best",
            header,
            rows,
        ),
    ]
    if found.cheapest is None:
        advice = "probe again into a new --out, or see diffssl-analyze compare --store"
        parts.append(Words(f"The results do not say what their settings cost; {advice}", "note"))
    about = (
        "Not significantly worse on the test rows, corrected for all comparisons; the lower end of the interval says how much "
        "worse it may be. Cheapest: fewest GFLOP, then bytes."
    )
    return Section("Which setting to use", parts, about)


def complement_section(settings: Sequence[Setting], rng: np.random.Generator) -> Section:
    """Which settings get right what others do not."""
    found = complement(settings, rng)
    header = ["", "settings", "test rows", "one is right", "low", "high", "over the best", "low", "high"]
    rows = [
        [one.what, _named(one.settings), one.rows, one.oracle, one.oracle_low, one.oracle_high, *_gain(one)] for one in found
    ]
    return Section(
        "Complements",
        [Table("Share of test rows that at least one of the settings gets right", header, rows)],
        "The pair and the triple are chosen on one half of the test rows and measured on the other. Of several fits of a "
        "setting, the first counts.",
    )


def comparison_section(comparison: Comparison) -> Section:
    """Every head and setting against the best by held-out accuracy, on the same test rows."""
    several = len({one.results for one in comparison.settings}) > 1
    header = ["", "head", "setting", "held-out", "test", "difference", "low", "high", "adjusted p", "won", "lost"]
    rows: list[list[Any]] = []
    for one in comparison.settings:
        about = _about(one, several)
        is_reference = one is comparison.reference
        numbers = [None] * 6 if is_reference else [one.difference, one.low, one.high, one.p, *map(_count, (one.won, one.lost))]
        rows.append(["reference" if is_reference else one.mark, one.head, about, one.val, one.test, *numbers])
    caption = f"{len(rows)} settings on the same {comparison.n_test} test rows"
    return Section(
        "Comparison",
        [Table(caption, header, rows)],
        "Paired differences of test accuracy from the reference, the best by held-out accuracy, with simultaneous 95 % "
        "intervals and p-values adjusted for all comparisons (max-T): = may be chance, + better, - worse.",
    )


def confusion_section(best: Result, stores: Sequence[FeatureStore]) -> Section:
    """Which classes the best fit takes for which, with pictures of rows where the store has thumbnails.

    Args:
        best: its result.
        stores: one of them has its test rows.

    Raises:
        NoResults: the line has no predictions.
        OtherRows: the store does not have its test rows.
    """
    tested, store = _tested(best, stores)
    counts = confusion(best, tested.labels)
    parts: list[Part] = []
    if len(tested.classes) <= _MOST_CLASSES:
        parts.append(_matrix(counts, tested.classes))
    pairs = most_confused(best, tested.labels)
    rows = [
        [tested.classes[one.label], tested.classes[one.predicted], len(one.rows), len(one.rows) / int(counts[one.label].sum())]
        for one in pairs
    ]
    parts.append(Table("Most confused pairs", ["class", "taken for", "rows", "share of the class"], rows))
    parts.append(_examples(store, tested, pairs[:_PAIRS]))
    return Section("Confusions", parts, f"Of {best['head']} on {describe_setting(best)}, the best by held-out accuracy.")


def _examples(store: FeatureStore, tested: TestSet, pairs: Sequence[ConfusedPair]) -> Part:
    """Pictures of the first rows of pairs; where there are none, why, and what to do."""
    try:
        rows = [
            (
                f"{tested.classes[one.label]}\ntaken for\n{tested.classes[one.predicted]}",
                [_thumbnail(store, tested, number) for number in one.rows[:_EXAMPLES].tolist()],
            )
            for one in pairs
        ]
    except (UnknownFeatures, IncompleteFeatures) as error:
        return Words(str(error), "note")
    return Pictures("The first rows of the most confused pairs", [], rows)


def _matrix(counts: NDArray[np.int64], classes: Sequence[str]) -> Heat:
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(100 * counts, totals, out=np.full(counts.shape, np.nan), where=totals > 0)
    hover = [
        [f"{counts[i, j]} of {totals[i, 0]} {classes[i]} taken for {classes[j]}" for j in range(len(classes))]
        for i in range(len(classes))
    ]
    digits = 0 if len(classes) <= 20 else None
    return Heat(
        "% of a class (rows) taken for each class", classes, classes, "class", "taken for", shares, hover, 0, 100, digits
    )


def _tested(best: Result, stores: Sequence[FeatureStore]) -> tuple[TestSet, FeatureStore]:
    """The test rows of a result, and the first store that has them."""
    for store in stores[:-1]:
        with suppress(OtherRows):
            return find_test_set(best, store), store
    return find_test_set(best, stores[-1]), stores[-1]


def _thumbnail(store: FeatureStore, tested: TestSet, number: int) -> Picture:
    row = int(tested.rows[number])
    return Picture(str(tested.ids[number]), store.thumbnails(tested.split, slice(row, row + 1))[0])


def _hover(one: AccuracyMap, row: int, column: int) -> str:
    if np.isnan(one.val[row, column]):
        return ""
    step = "" if one.timesteps[column] is None else f", timestep {one.timesteps[column]}"
    test, low, high = (100 * grid[row, column] for grid in one.accuracy("test"))
    return (
        f"block {one.blocks[row]}{step}: held-out {100 * one.val[row, column]:.2f} %, test {test:.2f} % [{low:.2f}, {high:.2f}]"
    )


def _line(curve: Curve) -> Line:
    y, low, high = ((100 * numbers).tolist() for numbers in (curve.y, curve.low, curve.high))
    points = zip(curve.x, y, low, high, strict=True)
    hover = [f"{curve.label}, {x:.4g}: {middle:.2f} % [{lower:.2f}, {upper:.2f}]" for x, middle, lower, upper in points]
    return Line(curve.label, curve.x.tolist(), y, low, high, hover)


def _named(settings: Sequence[str]) -> str:
    return "; ".join(settings) if len(settings) <= _NAMED else f"{len(settings)} settings"


def _gain(one: Complement) -> tuple[float, float, float]:
    return one.gain, one.gain_low, one.gain_high


def _count(rows: float) -> int | float:
    """Rows as a whole number where they are one; over several seeds they are means."""
    return int(rows) if rows == int(rows) else round(rows, 1)


def _guided(what: str, one: Compared, several: bool) -> list[Any]:
    differs = [one.difference, one.low, one.high]
    return [what, one.head, _about(one, several), one.val, one.test, *differs, one.gflop, one.bytes]


def _about(one: Compared, several: bool) -> str:
    return "; ".join(text for text in (one.setting, one.options, one.results if several else "") if text)


def _tags(one: AccuracyMap) -> dict[str, str]:
    return {"store": one.results, "head": one.head, "pool": str(one.pool)}
