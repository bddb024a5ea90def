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
from ..store import DiffsslError, canonical_json
from .max_t import max_t
from .table import NoResults

SIGNIFICANT = 0.05
_SHOWN = 40

Line = Mapping[str, Any]


class DifferentRows(DiffsslError):
    """Results about different test rows cannot be paired."""


@dataclass(frozen=True)
class Compared:
    """One setting beside the reference.

    Attributes:
        results: folder of its results.
        head: name of the head.
        setting: block, timestep and pool, in words; draw and crop where they are not 0.
        options: what else differs from results that would have the same name.
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
    """Settings ranked by held-out accuracy; the first is the reference. ``n_test`` is the number of test rows."""

    settings: Sequence[Compared]
    n_test: int

    @property
    def reference(self) -> Compared:
        """The best by held-out accuracy."""
        return self.settings[0]


def compare(results: Mapping[str, Sequence[Line]], rng: np.random.Generator) -> Comparison:
    """Compare every setting with the one that is best by held-out accuracy, on the same test rows. See :func:`max_t`.

    Fits that differ in their seed only are one setting, whose hits are means. The reference is chosen without test rows,
    so its own test value is not the luckiest of many. Of settings equal in held-out accuracy it is the first by name.

    Args:
        results: lines of each folder of results, by its name.
        rng: of the bootstrap.

    Raises:
        NoResults: fewer than two settings, or results without stored hits.
        DifferentRows: not all are about the same test rows with the same labels.
        ProbeError: stored hits are damaged.
    """
    groups = _by_setting(results)
    _check(groups)
    names = _names(groups)
    val = [fmean(line["val_top1"] for line in lines) for _, lines in groups]
    order = sorted(range(len(groups)), key=lambda i: (-val[i], names[i]))
    hits = np.stack([_summed_hits(*groups[i]) for i in order])
    seeds = np.array([len(groups[i][1]) for i in order])
    found = max_t(hits, seeds, 0, rng)
    numbers = np.stack([found.difference, found.low, found.high, found.p, found.won, found.lost], axis=1).tolist()
    test = (hits.mean(axis=1) / seeds).tolist()
    settings = [Compared(*names[i], int(seeds[k]), val[i], test[k], *numbers[k]) for k, i in enumerate(order)]
    return Comparison(settings, hits.shape[1])


def describe(comparison: Comparison) -> list[str]:
    """The comparison as a table, ranked by held-out accuracy, and in words."""
    reference, others = comparison.reference, comparison.settings[1:]
    several = len({one.results for one in comparison.settings}) > 1
    header = ["", "head", "setting", "val top-1", "test top-1", "difference", "95 % interval", "adjusted p", "won", "lost", ""]
    table = [header, *(_cells(one, several) for one in comparison.settings[:_SHOWN])]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    table[1][header.index("difference")] = "reference"
    lines = ["  ".join(_aligned(row, widths)).rstrip() for row in table]
    if len(comparison.settings) > _SHOWN:
        lines.append(f"… and {len(comparison.settings) - _SHOWN} more")
    better = sum(one.mark == "+" for one in others)
    alike = sum(one.mark == "=" for one in others)
    return [
        *lines,
        f"reference: {reference.head} on {reference.setting}, best by val; differences are on the same {comparison.n_test} test rows",
        f"not significantly different (=): {alike} of {len(others)}; better (+): {better}; worse (-): {len(others) - alike - better}; "
        "intervals and p hold for all comparisons together",
    ]


def _cells(one: Compared, several: bool) -> list[str]:
    about = [one.results] * several + [one.options] * bool(one.options) + [f"{one.seeds} seeds"] * (one.seeds > 1)
    numbers = [f"{one.difference:+.4f}", f"[{one.low:+.4f}, {one.high:+.4f}]", f"{one.p:.4f}"]
    rows = [f"{round(number, 1):.12g}" for number in (one.won, one.lost)]
    return [one.mark, one.head, one.setting, f"{one.val:.4f}", f"{one.test:.4f}", *numbers, *rows, "; ".join(about)]


def _aligned(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    """Words to the left, numbers to the right."""
    pairs = list(zip(row, widths, strict=True))
    return [
        cell.ljust(width) if column < 3 or column == len(row) - 1 else cell.rjust(width)
        for column, (cell, width) in enumerate(pairs)
    ]


def write_csv(comparison: Comparison, path: Path) -> None:
    """One line a setting, with the columns of :class:`Compared` and the mark."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Compared)] + ["mark"])
        writer.writeheader()
        writer.writerows(asdict(one) | {"mark": one.mark} for one in comparison.settings)


def _by_setting(results: Mapping[str, Sequence[Line]]) -> list[tuple[str, list[Line]]]:
    """Folder and lines of each setting: what differs in its seed only, in one folder."""
    groups: dict[tuple[str, bytes], list[Line]] = {}
    for folder, lines in results.items():
        for line in lines:
            fit = {name: value for name, value in line["specification"].items() if name != "seed"}
            groups.setdefault((folder, canonical_json(fit)), []).append(line)
    return [(folder, lines) for (folder, _), lines in groups.items()]


def _check(groups: Sequence[tuple[str, Sequence[Line]]]) -> None:
    """Raise unless there are two settings with hits of the same rows."""
    for folder, lines in groups:
        if any("test_hits" not in line or "test_rows" not in line for line in lines):
            raise NoResults(
                f"{folder}: {lines[0]['head']} on {_setting(lines[0])} has no stored hits: it is of an older version, or its labels are "
                "not classes; run diffssl-probe again with another --out, or leave it out with --head, --blocks, --timesteps, --pools"
            )
    rows: dict[str, tuple[str, Line]] = {}
    for folder, lines in groups:
        for line in lines:
            rows.setdefault(line["test_rows"], (folder, line))
    if len(rows) > 1:
        (one, first), (other, second) = list(rows.values())[:2]
        raise DifferentRows(
            f"{one}: {first['head']} on {_setting(first)} ({first['n_test']} test rows) and {other}: {second['head']} on {_setting(second)} "
            f"({second['n_test']}) were not tested on the same rows with the same labels; probe both with the same test split, labels and "
            "--limit, or leave one out with --head, --blocks, --timesteps, --pools"
        )
    if len(groups) < 2:
        there = "one setting" if groups else "no result"
        raise NoResults(
            f"{there} in {', '.join(folder for folder, _ in groups) or 'the folders'}: comparing needs two; run diffssl-probe first"
        )


def _names(groups: Sequence[tuple[str, Sequence[Line]]]) -> list[tuple[str, str, str, str]]:
    """Folder, head, setting and further options of each; no two are the same."""
    short = [(folder, str(lines[0]["head"]), _setting(lines[0])) for folder, lines in groups]
    names = []
    for name, (_, lines) in zip(short, groups, strict=True):
        own = _flat(lines[0])
        alike = [_flat(other[0]) for (_, other), theirs in zip(groups, short, strict=True) if theirs == name]
        differ = sorted({key for other in alike for key in own | other if own.get(key) != other.get(key)})
        names.append((*name, ", ".join(f"{key} {own.get(key, 'none')}" for key in differ)))
    return names


def _flat(line: Line) -> dict[str, str]:
    """The specification as words, options beside the rest."""
    fit = {**line["specification"], **line["specification"].get("options", {})}
    return {name: canonical_json(value).decode()[:40] for name, value in fit.items() if name not in ("options", "seed")}


def _setting(line: Line) -> str:
    """Such as "block 24, timestep 90, pool 2"; the numbers of several settings have + between them."""

    def text(value: Any) -> str:
        return "+".join(map(str, value)) if isinstance(value, list) else str(value)

    shown = (
        "block",
        *(() if line["timestep"] is None else ("timestep",)),
        "pool",
        *(name for name in ("draw", "crop") if line[name]),
    )
    return ", ".join(f"{name} {text(line[name])}" for name in shown)


def _summed_hits(folder: str, lines: Sequence[Line]) -> NDArray[np.int64]:
    """(n,) number of fits that got each row right."""
    try:
        return np.asarray([unpack_hits(line["test_hits"], line["n_test"]) for line in lines]).sum(axis=0, dtype=np.int64)
    except ProbeError as error:
        raise ProbeError(f"{folder}: {lines[0]['head']} on {_setting(lines[0])}: {error}") from error
