"""Which settings and heads are as good as the best: paired comparisons on the rows that all were tested on."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..probe.errors import ProbeError
from ..probe.predictions import unpack_hits
from ..probe.table import describe_setting
from ..store import DiffsslError, canonical_json
from .max_t import max_t
from .table import NoResults

SIGNIFICANT = 0.05
_SHOWN = 40
_LEAVE_OUT = "with --head, --blocks, --timesteps or --pools"

Line = Mapping[str, Any]


class DifferentRows(DiffsslError):
    """Results about different test rows cannot be paired."""


@dataclass(frozen=True)
class Compared:
    """One setting beside the reference.

    Attributes:
        results: folder of its results, if told.
        head: name of the head.
        setting: block, timestep and pool, in words; draw and crop where they are not 0.
        options: what else it differs in from results that would have the same name.
        seeds: number of fits that val, test and hits are means of.
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

    Fits that differ in their seed only are one setting, whose hits are means. The reference is chosen without test rows,
    so that its own test value is not the luckiest of many; of settings equal in held-out accuracy, it is the first by name.

    Args:
        results: lines as probing writes them, of one store or several; ``results`` names the folder, if there are several.
        rng: of the bootstrap.

    Raises:
        NoResults: fewer than two settings, or results without stored hits.
        DifferentRows: not all are about the same test rows with the same labels.
        ProbeError: stored hits are damaged.
    """
    groups: dict[tuple[str, bytes], list[Line]] = {}
    for line in results:
        fit = {name: value for name, value in line["specification"].items() if name != "seed"}
        groups.setdefault((line.get("results", ""), canonical_json(fit)), []).append(line)
    settings = list(groups.values())
    _check(settings)
    names = _names(settings)
    val = [fmean(line["val_top1"] for line in lines) for lines in settings]
    order = sorted(range(len(settings)), key=lambda i: (-val[i], names[i]))
    hits = np.stack([_summed_hits(settings[i]) for i in order])
    seeds = np.array([len(settings[i]) for i in order])
    found = max_t(hits, seeds, 0, rng)
    test = (hits.mean(axis=1) / seeds).tolist()
    columns = zip(found.difference, found.low, found.high, found.p, found.won, found.lost, strict=True)
    numbers = [[float(value) for value in row] for row in columns]
    compared = [Compared(*names[i], int(seeds[k]), val[i], test[k], *numbers[k]) for k, i in enumerate(order)]
    return Comparison(compared, hits.shape[1])


def describe(comparison: Comparison) -> list[str]:
    """The comparison as a table, ranked by held-out accuracy, and in words."""
    reference, others = comparison.reference, comparison.settings[1:]
    several = len({one.results for one in comparison.settings}) > 1
    header = ["", "head", "setting", "val top-1", "test top-1", "difference", "95 % interval", "adjusted p", "won", "lost", ""]
    table = [header, *(_cells(one, several) for one in comparison.settings[:_SHOWN])]
    table[1][5:10] = ["reference", "", "", "", ""]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    lines = ["  ".join(_aligned(row, widths)).rstrip() for row in table]
    if len(comparison.settings) > _SHOWN:
        lines.append(f"… and {len(comparison.settings) - _SHOWN} more")
    marks = [one.mark for one in others]
    return [
        *lines,
        f"reference, best by val: {reference.head} on {reference.setting}; {comparison.n_test} test rows, paired",
        f"not significantly different from it (=): {marks.count('=')} of {len(others)}, better (+): {marks.count('+')}, "
        f"worse (-): {marks.count('-')}, at 5 % for all comparisons together",
    ]


def write_csv(comparison: Comparison, path: Path) -> None:
    """One line a setting, in the order of the table, with the columns of :class:`Compared` and the mark."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Compared)] + ["mark"])
        writer.writeheader()
        writer.writerows(asdict(one) | {"mark": one.mark} for one in comparison.settings)


def _check(settings: Sequence[Sequence[Line]]) -> None:
    """Raise unless there are two settings with hits of the same rows."""
    rows: dict[str, Line] = {}
    for line in (line for lines in settings for line in lines):
        if "test_hits" not in line or "test_rows" not in line:
            raise NoResults(
                f"{_about(line)} has no stored hits: it was written by an older version, or its labels are not classes; "
                f"run diffssl-probe again into a new --out, or leave it out {_LEAVE_OUT}"
            )
        rows.setdefault(line["test_rows"], line)
    if len(rows) > 1:
        one, other = list(rows.values())[:2]
        raise DifferentRows(
            f"{_about(one)} ({one['n_test']} test rows) and {_about(other)} ({other['n_test']}) were not tested on the same "
            "rows with the same labels, so there is nothing to pair; probe both with the same test split, labels and --limit, "
            f"or leave one out {_LEAVE_OUT}"
        )
    if len(settings) < 2:
        raise NoResults(f"comparing needs two settings or heads, got {len(settings)}; select more, or run diffssl-probe first")


def _names(settings: Sequence[Sequence[Line]]) -> list[tuple[str, str, str, str]]:
    """Folder, head, setting and options of each, told apart by the options where the rest is the same."""
    short = [(str(lines[0].get("results", "")), str(lines[0]["head"]), describe_setting(lines[0])) for lines in settings]
    fits = [_flat(lines[0]) for lines in settings]
    alike: dict[tuple[str, str, str], list[dict[str, str]]] = {}
    for name, fit in zip(short, fits, strict=True):
        alike.setdefault(name, []).append(fit)
    differ = {
        name: [key for key in sorted(set().union(*group)) if len({fit.get(key) for fit in group}) > 1]
        for name, group in alike.items()
    }
    words = [", ".join(f"{key} {fit.get(key, 'none')}" for key in differ[name]) for name, fit in zip(short, fits, strict=True)]
    return [(*name, options) for name, options in zip(short, words, strict=True)]


def _flat(line: Line) -> dict[str, str]:
    """The specification as words, options beside the rest."""
    fit = {**line["specification"], **line["specification"].get("options", {})}
    return {name: canonical_json(value).decode() for name, value in fit.items() if name not in ("options", "seed")}


def _about(line: Line) -> str:
    return (
        f"{line['results']}: {line['head']} on {describe_setting(line)}"
        if "results" in line
        else f"{line['head']} on {describe_setting(line)}"
    )


def _summed_hits(lines: Sequence[Line]) -> NDArray[np.int32]:
    """(n,) number of fits that got each row right."""
    try:
        hits = np.stack([unpack_hits(line["test_hits"], line["n_test"]) for line in lines])
    except ProbeError as error:
        raise ProbeError(f"{_about(lines[0])}: {error}") from error
    return np.asarray(hits.sum(axis=0, dtype=np.int32))


def _cells(one: Compared, several: bool) -> list[str]:
    about = [one.results] * several + [one.options] * bool(one.options) + [f"{one.seeds} seeds"] * (one.seeds > 1)
    numbers = [f"{one.difference:+.4f}", f"[{one.low:+.4f}, {one.high:+.4f}]", f"{one.p:.4f}"]
    rows = [f"{round(number, 1):.12g}" for number in (one.won, one.lost)]
    return [one.mark, one.head, one.setting, f"{one.val:.4f}", f"{one.test:.4f}", *numbers, *rows, "; ".join(about)]


def _aligned(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    """Words to the left, numbers to the right."""
    words = {0, 1, 2, len(row) - 1}
    cells = enumerate(zip(row, widths, strict=True))
    return [cell.ljust(width) if column in words else cell.rjust(width) for column, (cell, width) in cells]
