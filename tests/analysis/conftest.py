"""Results as probing writes them, without probing, and a store of real features."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffssl.probe.predictions import pack_hits, test_rows_digest
from diffssl.store import FeatureStore
from numpy.typing import NDArray


@pytest.fixture
def line() -> Callable[..., dict[str, Any]]:
    """A function that makes one result."""

    def make(block: int, timestep: int | None, val: float, test: float, **more: Any) -> dict[str, Any]:
        own = {"pool": 1, "head": "linear", "seed": 0, "draw": 0} | more
        specification = {
            "setting": f"b{block}/p{own['pool']}/t{timestep}_d{own['draw']}",
            "head": own["head"],
            "seed": own["seed"],
            "rows": "r",
            "options": {"steps": 1000},
            "refit": True,
        }
        return {
            "key": f"{block} {timestep} {sorted(own.items())}",
            "feature_id": "f",
            "data_id": {"train": "a", "test": "b"},
            "block": block,
            "timestep": timestep,
            "crop": 0,
            "n_train": 900,
            "n_select": 90,
            "n_test": 2000,
            "val_top1": val,
            "test_top1": test,
            "test_top1_low": test - 0.02,
            "test_top1_high": test + 0.01,
            "specification": specification,
            **own,
        }

    return make


@pytest.fixture
def tested(line: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """A function that makes one result with its hits, of rows that are the same unless told otherwise."""

    def make(hits: NDArray[np.bool_], block: int, val: float, *, labels: int = 0, **more: Any) -> dict[str, Any]:
        n = len(hits)
        rows = test_rows_digest([f"{row:05d}" for row in range(n)], np.arange(n) % 10 + labels)
        kept = {"n_test": n, "test_hits": pack_hits(hits), "test_rows": rows}
        return line(block, more.pop("timestep", 10), val, float(hits.mean()), **kept | more)

    return make


@pytest.fixture(scope="session")
def real_store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """Features of 64 digits by the bundled model: blocks 19 (pool 1) and 24 (whole maps), 2 timesteps, 2 draws."""
    from diffssl.extract import ExtractSpec, extract

    path: Path = tmp_path_factory.mktemp("real") / "feats.zarr"
    blocks: dict[int, set[int | str]] = {19: {1}, 24: {"full"}}
    extract(ExtractSpec(blocks, [10, 300], store=path, limit=64, draws=2, device="cpu"))
    return FeatureStore.open(path)
