"""Results as grids of accuracies over block x timestep, of several heads, pools and stores."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from ..store import DiffsslError

CLASSIFY = "classify"  # the task of which results have a top-1 accuracy


class NoResults(DiffsslError):
    """There are no results to draw, or the selection leaves none."""


@dataclass(frozen=True)
class AccuracyMap:
    """Top-1 accuracy of one head at one pool size, of one folder of results.

    Attributes:
        results: name of the folder; empty where there is one alone.
        head: name of the head.
        pool: asked-for pool size; a block whose map is smaller shows its whole map.
        blocks: (rows) block numbers.
        timesteps: (columns) timesteps; [None] for an encoder without, whose map is one column.
        log_snr: (columns) log-SNR of each, None where there is none or the results do not say.
        val: (rows, columns) mean held-out top-1 over seeds and draws, NaN where there is no result; so are all that follow.
        val_low: lower ends of 95 % intervals: Wilson's, of so many held-out rows; the mean over seeds and draws.
        val_high: upper ends.
        test: mean test top-1.
        test_low: lower ends of 95 % intervals: the fits' own, bootstraps over test rows; the mean over seeds and draws.
        test_high: upper ends.
        gflop: GFLOP of an image, NaN too where the results do not say.
        bytes: of an image's feature, NaN likewise.
        n_test: test rows.
        seeds: of the fits of a cell.
        best: (row, column) of the highest ``val``.
    """

    results: str
    head: str
    pool: int | str
    blocks: list[int]
    timesteps: list[int | None]
    log_snr: list[float | None]
    val: NDArray[np.float64]
    val_low: NDArray[np.float64]
    val_high: NDArray[np.float64]
    test: NDArray[np.float64]
    test_low: NDArray[np.float64]
    test_high: NDArray[np.float64]
    gflop: NDArray[np.float64]
    bytes: NDArray[np.float64]
    n_test: int
    seeds: int
    best: tuple[int, int]

    def accuracy(self, value: str) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """(rows, columns) ``"val"`` or ``"test"`` accuracy, and the lower and upper ends of its intervals."""
        if value == "val":
            return self.val, self.val_low, self.val_high
        return self.test, self.test_low, self.test_high

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the test value at ``best``."""
        return float(self.test_low[self.best]), float(self.test_high[self.best])

    @property
    def title(self) -> str:
        """What the map is of, in words."""
        where = f"{self.results}: " if self.results else ""
        return f"{where}{self.head}, pool {self.pool}{f', {self.seeds} seeds' if self.seeds > 1 else ''}"


def accuracy_maps(
    results: Sequence[Mapping[str, Any]], heads: Sequence[str] | None = None, pools: Sequence[int | str] | None = None
) -> list[AccuracyMap]:
    """One map per folder, head and pool size; of an encoder without timesteps, one column.

    Args:
        results: lines; those of one folder (``results``) are of one store. Fits on several settings have no place on a map,
            and fits on subsets of the training rows are shown if there are no others: they are left out.
        heads: None for all.
        pools: None for all.

    Raises:
        NoResults: the selection leaves none in any folder, or a folder's results are of several stores or protocols.
    """
    other = {r["task"] for r in results if r.get("task", CLASSIFY) != CLASSIFY}
    if other:
        raise NoResults(
            f"maps are of top-1 accuracy, which results of --task {', '.join(sorted(other))} have not; leave them out"
        )
    folders: dict[str, list[Mapping[str, Any]]] = {}
    for r in results or [{}]:
        folders.setdefault(str(r.get("results", "")), []).extend([r] if r else [])
    have = dict.fromkeys(r["head"] for own in folders.values() for r in _shown(own))
    absent = [head for head in heads or [] if head not in have]
    if not have or absent:
        named = f" of {', '.join(absent)}" if absent else ""
        raise NoResults(f"no results{named}; there are {', '.join(have) or 'none'}; run diffssl-probe first")
    names = dict(zip(folders, _short(list(folders)), strict=True))
    found = []
    for folder, lines in folders.items():
        there = [r for r in _shown(lines) if heads is None or r["head"] in heads]
        _check_comparable(there)
        for head in heads or have:
            own = [r for r in there if r["head"] == head]
            found += [_one_map(names[folder], own, head, pool) for pool in (_pools(own) if pools is None else pools) if own]
    if not found:
        raise NoResults("no results are left by the selection; run diffssl-probe on what is missing")
    return found


def write_maps(maps: Sequence[AccuracyMap], path: Path) -> None:
    """One line a cell that has a result, as CSV: setting, cost, and both accuracies with their intervals."""
    names = (
        "results head pool block timestep log_snr gflop bytes seeds n_test best val val_low val_high test test_low test_high"
    )
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names.split())
        for one in maps:
            for place in zip(*np.nonzero(np.isfinite(one.val)), strict=True):
                row, column = int(place[0]), int(place[1])
                setting = [one.results, one.head, one.pool, one.blocks[row], one.timesteps[column], one.log_snr[column]]
                cost = [value if np.isfinite(value) else None for value in (one.gflop[place], one.bytes[place])]
                numbers = [float(grid[place]) for name in ("val", "test") for grid in one.accuracy(name)]
                writer.writerow([*setting, *cost, one.seeds, one.n_test, int((row, column) == one.best), *numbers])


def of_most_rows(results: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], list[str]]:
    """Of each folder the results trained on most rows, and notes about the others: a pilot lies in the same folder."""
    most: dict[str, int] = {}
    for r in results:
        folder = str(r.get("results", ""))
        most[folder] = max(most.get(folder, 0), r["n_train"])
    kept = [r for r in results if r["n_train"] == most[str(r.get("results", ""))]]
    notes = []
    for folder, number in most.items():
        left = sum(str(r.get("results", "")) == folder and r["n_train"] < number for r in results)
        where = f"{folder}: " if len(most) > 1 else ""
        if left:
            what = "(pilots, or subsets of the training rows)"
            notes.append(f"{where}{left} fits on fewer training rows than {number} are left out {what}")
    return kept, notes


def _shown(results: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Results that have a place on a map."""
    alone = [r for r in results if not isinstance(r["block"], list)]
    whole = [r for r in alone if r["specification"].get("subset") is None] or alone
    return [r for r in whole if r["timestep"] is not None] or whole


def _short(folders: Sequence[str]) -> list[str]:
    """Names of folders without what is above them and ``.results``, where these differ; none where there is one alone."""
    names = [Path(folder).name.removesuffix(".results") for folder in folders]
    if len(folders) < 2:
        return [""] * len(folders)
    return names if len(set(names)) == len(names) else list(folders)


def _pools(results: Sequence[Mapping[str, Any]]) -> list[int | str]:
    return sorted({r["pool"] for r in results}, key=lambda pool: (isinstance(pool, str), pool))


def _check_comparable(results: Sequence[Mapping[str, Any]]) -> None:
    """Raise ``NoResults`` for results of several stores, protocols or, within a head, options."""
    for name in ("feature_id", "n_train", "n_test", "data_id"):
        values = sorted({str(r[name]) for r in results})
        if len(values) > 1:
            raise NoResults(f"the results mix several values of {name} ({', '.join(values)}); draw them from separate folders")
    for name in ("rows", "refit", "options"):
        for head in {r["head"] for r in results} if name == "options" else [None]:
            # Repeated subsets of the training rows have rows of their own.
            by_repeat: dict[Any, set[str]] = {}
            for r in results:
                if head in (None, r["head"]):
                    repeat = (r["specification"].get("subset") or {}).get("repeat") if name == "rows" else None
                    by_repeat.setdefault(repeat, set()).add(str(r["specification"][name]))
            values = next((sorted(own) for own in by_repeat.values() if len(own) > 1), [])
            if len(values) > 1:
                raise NoResults(f"the results mix several {name} ({'; '.join(values)}); draw them from separate folders")


def _one_map(results: str, lines: Sequence[Mapping[str, Any]], head: str, pool: int | str) -> AccuracyMap:
    blocks = sorted({r["block"] for r in lines})
    timesteps: list[int | None] = sorted({r["timestep"] for r in lines})  # [None] alone, or none
    cells: dict[tuple[int, int], list[Mapping[str, Any]]] = {}
    for r in lines:
        if r["pool"] == _shown_pool(lines, r, pool):
            cells.setdefault((blocks.index(r["block"]), timesteps.index(r["timestep"])), []).append(r)
    if not cells:
        raise NoResults(f"no results of head {head} at pool {pool}")

    def grid(value: Callable[[Mapping[str, Any]], float]) -> NDArray[np.float64]:
        found = np.full((len(blocks), len(timesteps)), np.nan)
        for place, group in cells.items():
            found[place] = np.mean([value(r) for r in group])
        return found

    val, val_low, val_high, test, test_low, test_high = (
        grid(partial(_accuracy, name, end)) for name in ("val", "test") for end in ("", "_low", "_high")
    )
    row, column = (int(number) for number in np.unravel_index(int(np.nanargmax(val)), val.shape))
    snr = {r["timestep"]: r["log_snr"] for r in lines if "log_snr" in r}
    best = cells[row, column]
    gflop, size = val.copy(), val.copy()
    for place, group in cells.items():
        for costs, name in ((gflop, "gflop"), (size, "bytes")):
            costs[place] = next((r[name] for r in group if name in r), np.nan)
    noise, seeds = [snr.get(step) for step in timesteps], len({r["seed"] for r in best})
    accuracies = (val, val_low, val_high, test, test_low, test_high)
    return AccuracyMap(
        results, head, pool, blocks, timesteps, noise, *accuracies, gflop, size, best[0]["n_test"], seeds, (row, column)
    )


def _accuracy(name: str, end: str, line: Mapping[str, Any]) -> float:
    """``val_top1`` or ``test_top1`` of a result, or an end of its interval."""
    if name == "val" and end:
        n = line["n_select"]
        return float(getattr(binomtest(round(line["val_top1"] * n), n).proportion_ci(method="wilson"), end[1:]))
    return float(line[f"{name}_top1{end}"])


def _shown_pool(results: Sequence[Mapping[str, Any]], result: Mapping[str, Any], pool: int | str) -> int | str:
    """The stored pool of a block that shows an asked-for pool: a pool larger than the map is the map."""
    if isinstance(pool, str) or isinstance(result["pool"], str):
        return pool
    own = [other["pool"] for other in results if other["block"] == result["block"] and not isinstance(other["pool"], str)]
    return min(pool, int(result.get("map_size", max(own))))
