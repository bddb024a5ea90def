"""ProbeSpec: everything that one probing run was asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..store.location import local_path

HEADS = ("linear", "mlp", "logreg")

# One value a decade, 1e-6 to 1e5.
C_GRID = tuple(10.0**power for power in range(-6, 6))

# Standardised features of a few dozen channels are badly conditioned: a linear head on them wants large rates.
LEARNING_RATES = {"linear": (1e-2, 3e-2, 1e-1, 3e-1, 1.0), "mlp": (3e-4, 1e-3, 3e-3, 1e-2)}
# Small training sets want strong decay, where logistic regression would choose a small C.
WEIGHT_DECAYS = {"linear": (0.0, 0.1, 1.0), "mlp": (0.0,)}
STEPS = {"linear": 2000, "mlp": 1000}


@dataclass(frozen=True)
class ProbeSpec:
    """Which heads on which settings of which store, and how.

    Attributes:
        store: path or URL of the store.
        heads: names out of ``HEADS``.
        blocks: block number -> pools of its own, empty for ``pools``; None for all blocks of the store.
        timesteps: None for all.
        pools: None for all.
        seeds: fits with seeds 0 .. seeds-1; logistic regression has no randomness and is fitted once.
        limit: only the first so many rows of every split; None for those the extraction was asked for.
        refit: fit again on train and held-out rows with what was chosen.
        out: folder of results; None for the store's name with ``.results``, in the current folder if the store is a URL.
        learning_rates, weight_decays: all pairs are tried together by the torch heads; None for those of the head in
            ``LEARNING_RATES`` and ``WEIGHT_DECAYS``.
        steps: optimiser steps of the torch heads; None for ``STEPS`` of the head.
        batch_size: rows of a step.
        hidden: widths of the hidden layers of ``mlp``.
        device: torch device, or ``"auto"``.
    """

    store: Path | str
    heads: Sequence[str]
    blocks: Mapping[int, set[int | str]] | None = None
    timesteps: Sequence[int] | None = None
    pools: Sequence[int | str] | None = None
    seeds: int = 1
    limit: int | None = None
    refit: bool = True
    out: Path | None = None
    learning_rates: Sequence[float] | None = None
    weight_decays: Sequence[float] | None = None
    steps: int | None = None
    batch_size: int = 256
    hidden: Sequence[int] = (256,)
    device: str = "auto"

    def __post_init__(self) -> None:
        unknown = [head for head in self.heads if head not in HEADS]
        if unknown or not self.heads:
            raise ValueError(f"unknown heads {unknown}; known are {', '.join(HEADS)}")
        for name in ("seeds", "steps", "batch_size", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
        if self.learning_rates is not None and (not self.learning_rates or min(self.learning_rates) <= 0):
            raise ValueError(f"learning rates must be positive, got {self.learning_rates}")
        if self.weight_decays is not None and (not self.weight_decays or min(self.weight_decays) < 0):
            raise ValueError(f"weight decays must not be negative, got {self.weight_decays}")
        if min(self.hidden) < 1:
            raise ValueError(f"hidden widths must be positive, got {self.hidden}")

    @property
    def results(self) -> Path:
        """Folder of results."""
        return self.out or local_path(self.store, ".results")

    def head_options(self, head: str) -> dict[str, Any]:
        """What decides a fit of this head besides its data, as JSON; part of a result's key."""
        if head == "logreg":
            return {"C": list(C_GRID)}
        options = {
            "learning_rates": list(self.learning_rates or LEARNING_RATES[head]),
            "steps": self.steps or STEPS[head],
            "batch_size": self.batch_size,
            "weight_decays": list(self.weight_decays or WEIGHT_DECAYS[head]),
        }
        return options | ({"hidden": list(self.hidden)} if head == "mlp" else {})
