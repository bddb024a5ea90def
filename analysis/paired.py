"""Results as settings that were all tested on the same rows, with their hits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..probe.errors import ProbeError
from ..probe.predictions import unpack_hits
from ..probe.table import describe_setting
from ..store import DiffsslError, canonical_json
from .table import NoResults

_LEAVE_OUT = "with --head, --blocks, --timesteps or --pools"
_ROWS = ("rows", "trained")  # digests of which rows were trained on

Line = Mapping[str, Any]


class DifferentRows(DiffsslError):
    """Results about different test rows cannot be paired."""


@dataclass(frozen=True)
class Setting:
    """Fits that are the same but for their seed, and for which subset of a size they were trained on.

    Attributes:
        results: folder of the results, if told.
        head: name of the head.
        setting: block, timestep and pool, in words; draw and crop where they are not 0.
        options: what else it differs in from settings that would have the same name.
        lines: of the fits, by seed, then by subset.
    """

    results: str
    head: str
    setting: str
    options: str
    lines: Sequence[Line]

    @property
    def name(self) -> tuple[str, str, str, str]:
        """Folder, head, setting and options."""
        return self.results, self.head, self.setting, self.options

    @property
    def val(self) -> float:
        """Mean held-out top-1."""
        return fmean(line["val_top1"] for line in self.lines)

    @property
    def seeds(self) -> int:
        """How many seeds there are."""
        return len({line["seed"] for line in self.lines})

    @property
    def subsets(self) -> int:
        """How many subsets of the training rows there are."""
        return len({_repeat(line) for line in self.lines})

    @property
    def gflop(self) -> float | None:
        """GFLOP of an image; None if none of the results says it."""
        return next((float(line["gflop"]) for line in self.lines if "gflop" in line), None)

    @property
    def bytes(self) -> int | None:
        """Bytes of an image's features; None likewise."""
        return next((int(line["bytes"]) for line in self.lines if "bytes" in line), None)

    def describe(self, several: bool) -> str:
        """Head, setting and options in words, and the folder if there are several."""
        text = f"{self.head} on {self.setting}" + (f" ({self.options})" if self.options else "")
        return f"{self.results}: {text}" if several else text


def paired_settings(results: Sequence[Line]) -> list[Setting]:
    """Results as settings, the best by held-out accuracy first; of equals, the first by name.

    Fits that differ in their seed only are one setting. So are those on repeated subsets of the training rows of one size.

    Raises:
        NoResults: fewer than two settings, or results without stored hits.
        DifferentRows: not all are about the same test rows with the same labels.
    """
    groups: dict[tuple[str, bytes], list[Line]] = {}
    for line in results:
        groups.setdefault((str(line.get("results", "")), canonical_json(_fit(line))), []).append(line)
    found = [sorted(lines, key=lambda line: (line["seed"], _repeat(line))) for lines in groups.values()]
    _check(found)
    settings = [Setting(*name, lines) for name, lines in zip(_names(found), found, strict=True)]
    return sorted(settings, key=lambda one: (-one.val, one.name))


def hits_of(lines: Sequence[Line]) -> NDArray[np.bool_]:
    """(fits, n) hits of some results. Raises ``ProbeError``."""
    try:
        return np.stack([unpack_hits(line["test_hits"], line["n_test"]) for line in lines])
    except ProbeError as error:
        raise ProbeError(f"{_about(lines[0])}: {error}") from error


def _fit(line: Line) -> dict[str, Any]:
    """What decides which setting a result is of; of subsets of a size, not which rows were drawn."""
    fit = {name: value for name, value in line["specification"].items() if name != "seed"}
    subset = fit.get("subset")
    if subset and "repeat" in subset:
        fit = {name: value for name, value in fit.items() if name not in _ROWS}
        fit["subset"] = {name: value for name, value in subset.items() if name != "repeat"} | {"rows": line["n_train"]}
    return fit


def _repeat(line: Line) -> int:
    return int((line["specification"].get("subset") or {}).get("repeat", 0))


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
    differ = {name: _differing(group) for name, group in alike.items()}
    words = [", ".join(f"{key} {fit.get(key, 'none')}" for key in differ[name]) for name, fit in zip(short, fits, strict=True)]
    return [(*name, options) for name, options in zip(short, words, strict=True)]


def _differing(fits: Sequence[Mapping[str, str]]) -> list[str]:
    """What some fits differ in; digests of rows only if nothing else tells them apart."""
    names = [key for key in sorted(set().union(*fits)) if len({fit.get(key) for fit in fits}) > 1]
    plain = [key for key in names if key not in _ROWS]
    apart = len({tuple(fit.get(key) for key in plain) for fit in fits}) == len(fits)
    return plain if apart else names


def _flat(line: Line) -> dict[str, str]:
    """The specification as words, options and the subset beside the rest."""
    fit = _fit(line)
    parts = [fit, fit.get("options", {}), {name: v for name, v in (fit.get("subset") or {}).items() if v and name != "rows"}]
    flat = {name: value for part in parts for name, value in part.items() if name not in ("options", "subset")}
    return {name: canonical_json(value).decode() for name, value in flat.items()}


def _about(line: Line) -> str:
    where = f"{line['results']}: " if "results" in line else ""
    return f"{where}{line['head']} on {describe_setting(line)}"
