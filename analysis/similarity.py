"""Similarity of the settings of stores, and statistics of each: from stores to tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import combinations, combinations_with_replacement
from typing import Any

import numpy as np

from ..store.progress import progress_bar
from .cka import Similarity, cka
from .rows import Rows
from .statistics import check_width, noise_share, statistics
from .stored_rows import Selected, StoredRows, draws_of

_DELAY = 2  # seconds
HELD_BYTES = 1 << 30


def similarity(selected: Selected, estimator: str, held_bytes: int = HELD_BYTES) -> Similarity:
    """CKA of all pairs of the selected settings, with a progress bar if it takes long. Raises as :func:`cka`.

    Features are read once and kept as long as there is room in ``held_bytes``; the others are read for every tile.
    """
    with progress_bar(None, " tiles", "cka", _DELAY) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return cka(
            list(_held(selected.settings, held_bytes)), estimator, names=list(map(str, selected.settings)), progress=show
        )


def _held(settings: Sequence[StoredRows], room: int) -> Iterator[Rows]:
    for one in settings:
        room -= one.nbytes
        yield one[:] if room >= 0 else one


def pairs(selected: Selected, found: Similarity, estimator: str) -> list[dict[str, Any]]:
    """A row a pair of settings, each with itself too: what both are, CKA, the ends of its interval, estimator, split, rows."""
    named = [_names(one) for one in selected.settings]
    return [
        {f"{name}_{side}": value for side, one in (("a", a), ("b", b)) for name, value in named[one].items()}
        | {name: float(getattr(found, name)[a, b]) for name in ("value", "low", "high")}
        | {"estimator": estimator, "split": selected.settings[a].split, "rows": len(selected.settings[a].rows)}
        for a, b in combinations_with_replacement(range(len(named)), 2)
    ]


def noise_to_noise(selected: Selected, found: Similarity) -> list[str]:
    """A line for each setting with several draws: CKA between them, the mean over pairs of draws if there are more than two."""
    lines = []
    for (path, key), own in draws_of(selected.settings).items():
        between = list(combinations(own, 2))
        if not between:
            continue
        value = np.mean([found.value[pair] for pair in between])
        a, b = between[0]
        spread = f"[{found.low[a, b]:.3f}, {found.high[a, b]:.3f}]" if len(between) == 1 else f"mean of {len(between)} pairs"
        lines.append(f"between draws: {path}, {key}: {value:.3f} {spread}")
    return lines


def statistics_table(selected: Selected) -> list[dict[str, Any]]:
    """A row a setting: what it is, and its statistics; noise by all its draws. Raises as :func:`statistics`."""
    settings = selected.settings
    for one in settings:
        check_width(one, str(one))
    noise: dict[int, float | None] = {}
    rows: list[dict[str, Any]] = []
    with progress_bar(len(settings), " settings", "statistics", _DELAY) as bar:
        for own in draws_of(settings).values():
            noise |= dict.fromkeys(own, noise_share([settings[number] for number in own]))
        for number, one in enumerate(settings):
            found = asdict(statistics(one, selected.labels))
            rows.append({**_names(one), "split": one.split, **found, "noise_share": noise[number]})
            bar.update()
    return rows


def _names(one: StoredRows) -> dict[str, Any]:
    key, path = one.key, one.store.path
    own = {"store": path, "block": key.block, "timestep": key.timestep, "pool": key.pool, "draw": key.draw}
    return {**own, "features": one.shape[1]}


def labels(settings: Sequence[StoredRows]) -> list[str]:
    """Short names of settings for a picture: block and timestep, and of pool and draw what is not the same for all."""
    pools = len({one.key.pool for one in settings}) > 1
    draws = len({one.key.draw for one in settings}) > 1
    return [
        f"b{one.key.block}"
        + ("" if one.key.timestep is None else f" t{one.key.timestep}")
        + (f" p{one.key.pool}" if pools and isinstance(one.key.pool, int) else f" {one.key.pool}" if pools else "")
        + (f" d{one.key.draw}" if draws else "")
        for one in settings
    ]


def groups_of(settings: Sequence[StoredRows]) -> list[tuple[str, int]]:
    """(path of a store, number of its settings) in order."""
    return list(Counter(one.store.path for one in settings).items())
