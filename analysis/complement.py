"""Which settings know what others do not: what one of several gets right, and which setting is best at each class.

Whatever is chosen for its hits has lucky hits. So it is chosen on one half of the test rows and measured on the other.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..probe.bootstrap import with_intervals
from .oracle import best_of_all, best_with
from .paired import Setting, hits_of

MOST_WORDS = 5_000_000_000  # of 64 rows, over all triples; about a minute


BEST, ALL, TWO_FITS = "best by val", "all settings", "two fits of the best"


@dataclass(frozen=True)
class Complement:
    """Settings of which at least one is right, beside the one that is best by held-out accuracy.

    Attributes:
        what: ``best by val``, ``all settings``, ``two fits of the best`` if it has several, ``pair`` or ``triple``.
        search: how the settings were found: ``exhaustive``, ``greedy``, or empty where nothing was searched.
        settings: in words.
        rows: test rows that the numbers are of: all, or the half that was not chosen on.
        chosen: accuracy on the half that was chosen on; None where nothing was chosen.
        oracle: share of rows that at least one gets right.
        oracle_low: lower end of its 95 % interval.
        oracle_high: upper end.
        gain: how much that is above the best by held-out accuracy, on the same rows.
        gain_low: lower end of its 95 % interval, paired.
        gain_high: upper end.
    """

    what: str
    search: str
    settings: Sequence[str]
    rows: int
    chosen: float | None
    oracle: float
    oracle_low: float
    oracle_high: float
    gain: float
    gain_low: float
    gain_high: float


def complement(settings: Sequence[Setting], rng: np.random.Generator, most_words: int = MOST_WORDS) -> list[Complement]:
    """The best setting, all together, the best pair and triple. Of several fits of a setting, the first counts.

    Args:
        settings: two or more of :func:`~.paired.paired_settings`, the best by held-out accuracy first.
        rng: of the bootstrap.
        most_words: all triples are tried if they take no more words of 64 rows than this; else the best pair is extended.

    Raises:
        ProbeError: stored hits are damaged.
    """
    hits = first_hits(settings)
    several = len({one.results for one in settings}) > 1
    names = [one.describe(several) for one in settings]
    choose, report = halves(hits.shape[1])

    def measured(
        what: str, own: NDArray[np.bool_], rows: NDArray[np.int64], shown: Sequence[str], search: str = ""
    ) -> Complement:
        """Numbers of some fits' (F, n) hits; those found by a search have an accuracy where they were chosen."""
        n, right = len(rows), own[:, rows].any(axis=0).astype(np.float64)
        values = np.stack([right, right - hits[0, rows]])
        found = with_intervals(lambda counts: dict(zip(("oracle", "gain"), values @ counts / n, strict=True)), n, rng)
        return Complement(what, search, shown, n, float(own[:, choose].any(axis=0).mean()) if search else None, **found)

    everything = np.arange(hits.shape[1])
    found = [measured(BEST, hits[:1], everything, names[:1]), measured(ALL, hits, everything, [f"all {len(names)}"])]
    if len(settings[0].lines) > 1:
        found.append(measured(TWO_FITS, hits_of(settings[0].lines[:2]), everything, names[:1]))
    chosen: list[int] = []
    for size, what in ((2, "pair"), (3, "triple")):
        if len(settings) >= size:
            exhaustive = size == 2 or len(settings) ** size // 6 * -(-len(choose) // 64) <= most_words
            chosen = best_of_all(hits[:, choose], size) if exhaustive else best_with(hits[:, choose], chosen)
            shown = [names[number] for number in chosen]
            found.append(measured(what, hits[chosen], report, shown, "exhaustive" if exhaustive else "greedy"))
    return found


def first_hits(settings: Sequence[Setting]) -> NDArray[np.bool_]:
    """(S, n) hits of the first fit of each setting."""
    return np.concatenate([hits_of(one.lines[:1]) for one in settings])


def halves(n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to choose on and rows to report on: those of even and of odd number. Rows are in an order of a hash."""
    rows = np.arange(n)
    return rows[::2], rows[1::2]


def describe(found: Sequence[Complement]) -> list[str]:
    """The complements in words."""
    lines = []
    for one in found:
        numbers = f"{one.oracle:.4f} [{one.oracle_low:.4f}, {one.oracle_high:.4f}]"
        gain = f"{one.gain:+.4f} [{one.gain_low:+.4f}, {one.gain_high:+.4f}] above the best"
        if one.what == BEST:
            lines.append(f"{BEST}: {one.settings[0]}: test top-1 {numbers} on {one.rows} rows")
        elif one.search:
            lines += [f"best {one.what} ({one.search}, chosen on the other half of the test rows):"]
            lines += [f"  {name}" for name in one.settings]
            lines.append(f"  one of them right: {numbers}, {gain}, on {one.rows} rows; {one.chosen:.4f} where chosen")
        else:
            lines.append(f"one of {one.what} right: {numbers}, {gain}")
    told = any(one.what == TWO_FITS for one in found)
    return [
        *lines,
        "one right of several is what a perfect choice between them would give, not what a vote or a joint fit gives;",
        "two fits of one setting add to each other too: "
        + ("see above" if told else "probe heads with randomness with --seeds 2 to see by how much"),
    ]


def write_csv(found: Sequence[Complement], path: Path) -> None:
    """One line each, the settings divided by ``; ``."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Complement)])
        writer.writeheader()
        writer.writerows(asdict(one) | {"settings": "; ".join(one.settings)} for one in found)
