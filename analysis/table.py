"""Results as a grid of accuracies over block x timestep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..store import DiffsslError


class NoResults(DiffsslError):
    """There are no results to draw, or the selection leaves none."""


@dataclass(frozen=True)
class AccuracyMap:
    """Top-1 accuracy of one head at one pool size.

    Attributes:
        head: name of the head.
        pool: asked-for pool size; a block whose map is smaller shows its whole map.
        blocks: (rows) block numbers.
        timesteps: (columns) timesteps; [None] for an encoder without, whose map is one column.
        val: (len(blocks), len(timesteps)) mean held-out top-1 over seeds and draws, NaN where there is no result.
        test: the same of test top-1.
        n_test: test rows.
        seeds: of the fits of a cell.
        best: (row, column) of the highest ``val``.
        interval: 95 % interval of the test value at ``best``.
    """

    head: str
    pool: int | str
    blocks: list[int]
    timesteps: list[int | None]
    val: NDArray[np.float64]
    test: NDArray[np.float64]
    n_test: int
    seeds: int
    best: tuple[int, int]
    interval: tuple[float, float]


def accuracy_maps(
    results: Sequence[Mapping[str, Any]], heads: Sequence[str] | None = None, pools: Sequence[int | str] | None = None
) -> list[AccuracyMap]:
    """One map per head and pool size; of an encoder without timesteps, one column.

    Args:
        results: lines of one store (one ``feature_id``). Fits on several settings have no place on a map, and fits on subsets
            of the training rows are shown if there are no others: they are left out.
        heads: None for all.
        pools: None for all.

    Raises:
        NoResults: the selection leaves none, or the results are of several stores or protocols.
    """
    alone = [r for r in results if not isinstance(r["block"], list)]
    whole = [r for r in alone if r["specification"].get("subset") is None] or alone
    there = [r for r in whole if r["timestep"] is not None] or whole
    have = dict.fromkeys(r["head"] for r in there)
    absent = [head for head in heads or [] if head not in have]
    if not there or absent:
        named = f" of {', '.join(absent)}" if absent else ""
        raise NoResults(f"no results{named}; there are {', '.join(have) or 'none'}; run diffssl-probe first")
    there = [r for r in there if heads is None or r["head"] in heads]
    _check_comparable(there)
    return [
        _one_map(own, head, pool)
        for head in heads or have
        if (own := [r for r in there if r["head"] == head])
        for pool in (_pools(own) if pools is None else pools)
    ]


def of_most_rows(results: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], list[str]]:
    """The results trained on most rows, and a note about the others: a pilot (``--limit``) lies in the same folder."""
    most = max((r["n_train"] for r in results), default=0)
    kept = [r for r in results if r["n_train"] == most]
    left = len(results) - len(kept)
    note = f"{left} fits on fewer training rows than {most} are left out (pilots, or subsets of the training rows)"
    return kept, [note] if left else []


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
            values = sorted({str(r["specification"][name]) for r in results if head in (None, r["head"])})
            if len(values) > 1:
                raise NoResults(f"the results mix several {name} ({'; '.join(values)}); draw them from separate folders")


def _one_map(results: Sequence[Mapping[str, Any]], head: str, pool: int | str) -> AccuracyMap:
    blocks = sorted({r["block"] for r in results})
    timesteps: list[int | None] = sorted({r["timestep"] for r in results})  # [None] alone, or none
    cells: dict[tuple[int, int], list[Mapping[str, Any]]] = {}
    for r in results:
        if r["pool"] == _shown_pool(results, r, pool):
            cells.setdefault((blocks.index(r["block"]), timesteps.index(r["timestep"])), []).append(r)
    if not cells:
        raise NoResults(f"no results of head {head} at pool {pool}")
    val = np.full((len(blocks), len(timesteps)), np.nan)
    test = val.copy()
    for place, group in cells.items():
        val[place] = np.mean([r["val_top1"] for r in group])
        test[place] = np.mean([r["test_top1"] for r in group])
    row, column = np.unravel_index(int(np.nanargmax(val)), val.shape)
    best = cells[int(row), int(column)]
    interval = tuple(float(np.mean([r[f"test_top1_{end}"] for r in best])) for end in ("low", "high"))
    return AccuracyMap(
        head,
        pool,
        blocks,
        timesteps,
        val,
        test,
        best[0]["n_test"],
        len({r["seed"] for r in best}),
        (int(row), int(column)),
        (interval[0], interval[1]),
    )


def _shown_pool(results: Sequence[Mapping[str, Any]], result: Mapping[str, Any], pool: int | str) -> int | str:
    """The stored pool of a block that shows an asked-for pool: a pool larger than the map is the map."""
    if isinstance(pool, str) or isinstance(result["pool"], str):
        return pool
    own = [other["pool"] for other in results if other["block"] == result["block"] and not isinstance(other["pool"], str)]
    return min(pool, int(result.get("map_size", max(own))))
