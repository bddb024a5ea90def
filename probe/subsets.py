"""Parts of the training rows: so many a class, a fraction, or the ids in a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..store import digest, salted_fractions
from .errors import ProbeError, TooFewRows


@dataclass(frozen=True)
class Subset:
    """Which training rows.

    Attributes:
        shots: rows a class.
        fraction: part of each class's rows.
        repeat: number of the draw; the rows of fewer shots are among those of more, for the same repeat.
        ids: file of ids, one a line.
    """

    shots: int | None = None
    fraction: float | None = None
    repeat: int = 0
    ids: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """What a result line says of it."""
        if self.ids is not None:
            return {"train_ids": digest(sorted(_read_ids(self.ids)))}
        return {"shots": self.shots, "fraction": self.fraction, "repeat": self.repeat}


def choose_rows(
    subset: Subset, ids: NDArray[np.object_], labels: NDArray[Any], rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], str]:
    """The rows of a subset, ascending, and a note about them.

    Which rows of a class come first is a function of (repeat, id) alone, so it does not change when a store grows.

    Args:
        subset: what is wanted.
        ids: of all rows of the split.
        labels: class numbers of all rows of the split; not looked at for a file of ids.
        rows: to choose among.

    Raises:
        TooFewRows: nothing is left, or a class has fewer rows than shots.
    """
    if subset.ids is not None:
        wanted = _read_ids(subset.ids)
        names = [name in wanted for name in ids[rows]]
        chosen = rows[np.array(names, dtype=bool)]
        if not len(chosen):
            example = f"such as {ids[rows[0]]!r}"
            raise TooFewRows(f"{subset.ids}: none of its {len(wanted)} ids is among the training rows, {example}")
        return chosen, f"{len(chosen)} training rows of the {len(wanted)} ids in {subset.ids}"
    place = salted_fractions(ids[rows], f"diffssl-few{subset.repeat}")
    parts = []
    for label in np.unique(labels[rows]):
        own = np.flatnonzero(labels[rows] == label)
        own = own[np.argsort(place[own], kind="stable")]
        if subset.shots is not None and len(own) < subset.shots:
            raise TooFewRows(f"class {label} has {len(own)} training rows, fewer than --shots {subset.shots}")
        count = subset.shots if subset.shots is not None else max(1, round((subset.fraction or 0) * len(own)))
        parts.append(own[:count])
    chosen = np.sort(rows[np.concatenate(parts)])
    what = f"{subset.shots} rows a class" if subset.shots is not None else f"{subset.fraction:.4g} of each class"
    return chosen, f"{what}, subset {subset.repeat} ({len(chosen)} rows)"


def _read_ids(path: Path) -> set[str]:
    try:
        return {line for line in path.read_text("utf-8").splitlines() if line}
    except (OSError, UnicodeDecodeError) as error:
        raise ProbeError(f"{path}: cannot be read as ids, one a line ({error})") from error
