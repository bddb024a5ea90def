"""Results of several folders, and those that options select; errors name what there is instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..probe import Results
from ..store.selection import FULL
from .table import NoResults

Blocks = Mapping[int, set[int | str]]


def read_results(folders: Sequence[Path]) -> list[Mapping[str, Any]]:
    """Lines of all folders, each with the name of its folder as ``results``. Raises ``NoResults`` for one without any."""
    found: list[Mapping[str, Any]] = []
    for folder in dict.fromkeys(folders):
        lines = Results(folder).read()
        if not lines:
            raise NoResults(f"{folder} has no results; run diffssl-probe first")
        found += [{**line, "results": str(folder)} for line in lines]
    return found


def choose_results(
    results: Sequence[Mapping[str, Any]],
    heads: Sequence[str] | None = None,
    blocks: Blocks | None = None,
    timesteps: Sequence[int] | None = None,
    pools: Sequence[int | str] | None = None,
) -> list[Mapping[str, Any]]:
    """Results of all that is selected. One of several settings needs all its blocks, timesteps and pools selected.

    Args:
        results: as probing writes them.
        heads: None for all.
        blocks: block number -> pools of its own, empty for ``pools``; None for all.
        timesteps: None for all.
        pools: as for probing: one larger than a block's map, or ``full``, is the whole map; None for all.

    Raises:
        NoResults: none is left, or something that is named has none.
    """
    there = [result for result in results if heads is None or result["head"] in heads]
    _require("head", heads, {result["head"] for result in results})
    _require("block", blocks, {block for result in there for block in _listed(result["block"])})
    _require("timestep", timesteps, {step for result in there for step in _listed(result["timestep"])})
    chosen = [
        result
        for result in there
        if (blocks is None or set(_listed(result["block"])) <= set(blocks))
        and (timesteps is None or set(_listed(result["timestep"])) <= set(timesteps))
        and _has_pools(result, blocks or {}, pools)
    ]
    if not chosen:
        raise NoResults(f"no results are left by the selection, out of {len(results)}; run diffssl-probe on what is missing")
    return chosen


def _listed(value: Any) -> list[Any]:
    """Value of every setting of a result: heads over several settings have lists."""
    return value if isinstance(value, list) else [value]


def _require(name: str, wanted: Sequence[Any] | Mapping[Any, Any] | None, have: set[Any]) -> None:
    absent = [str(one) for one in wanted or () if one not in have]
    if absent:
        known = ", ".join(sorted(map(str, have), key=lambda text: (len(text), text)))
        raise NoResults(f"no results of {name} {', '.join(absent)}; there are {known or 'none'}; run diffssl-probe first")


def _has_pools(result: Mapping[str, Any], blocks: Blocks, pools: Sequence[int | str] | None) -> bool:
    numbers, own, sizes = (_listed(value) for value in (result["block"], result["pool"], result.get("map_size")))
    if len(sizes) < len(numbers):
        sizes = [None] * len(numbers)
    for block, pool, size in zip(numbers, own, sizes, strict=True):
        wanted = blocks.get(block) or pools
        if wanted is not None and pool not in {_stored(one, size) for one in wanted}:
            return False
    return True


def _stored(pool: int | str, map_size: int | None) -> int | str | None:
    """The stored pool that an asked-for pool means, in a block with maps of this side."""
    if pool == FULL:
        return map_size
    return min(pool, map_size) if isinstance(pool, int) and map_size is not None else pool
