"""A small store for the tests of the store: splits of ten and six rows, row blocks of four, three settings."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from diffssl.store import (
    Block,
    FeatureKey,
    FeatureStore,
    Identity,
    LeftOut,
    StoreHeader,
    UnitWriter,
    add_arrays,
    add_split,
    create,
    row_order,
)
from diffssl.store.journal import Commit
from diffssl.store.layout import block_range
from hypothesis import HealthCheck, settings
from numpy.typing import NDArray

# A busy machine is no reason to fail.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

HEADER = StoreHeader(
    identity=Identity({"weights": "5f1d", "model": {"channels": 32, "layers": 2}, "noise": {"scheme": 1, "seed": 0}}),
    classes=("cat", "dog"),
    row_block=4,
    batch_size=2,
    dtype="float16",
    memory_format="channels_last",
    blocks=(Block(1, "Conv", 3, 4, 0.5, 0.25), Block(2, "Res+Attn", 5, 2, 2.0, 1.0)),
    model="tiny",
    versions={"diffssl": "0.1.0"},
)
KEYS = [FeatureKey(1, 10, 1), FeatureKey(2, 10, 2), FeatureKey(2, 90, 2)]
SPLITS = {"train": 10, "test": 6}
COMMAND = "diffssl-extract --blocks 1,2 --timesteps 10,90"


@lru_cache
def _ids(split: str, n_rows: int) -> NDArray[np.object_]:
    names = [f"{'cat' if i % 2 else 'dog'}/{split}-{i:03d}.png" for i in range(n_rows)]
    ids: NDArray[np.object_] = np.array(names, dtype=object)[row_order(names)]
    return ids


def _labels(n_rows: int) -> NDArray[np.int32]:
    labels: NDArray[np.int32] = (np.arange(n_rows) % 3 - 1).astype(np.int32)
    return labels


def _expected(store: FeatureStore, key: FeatureKey, split: str) -> NDArray[Any]:
    layout = store.layout(key, split)
    rng = np.random.default_rng(crc32(f"{split}/{key.path}".encode()))
    values: NDArray[Any] = rng.standard_normal((layout.rows, *layout.row_shape)).astype(layout.dtype)
    return values


def _commit_unit(
    store: FeatureStore,
    split: str,
    row_block: int,
    features: Mapping[FeatureKey, NDArray[Any]],
    *,
    left_out: Mapping[int, LeftOut] | None = None,
    limit: int | None = None,
    command: str | None = COMMAND,
) -> Commit:
    n_rows = store.n_rows(split)
    rows = block_range(n_rows, store.header.row_block, row_block)
    writer = UnitWriter(store, split, row_block, list(features), _ids(split, n_rows)[rows.start : rows.stop].tolist())
    writer.write(features, left_out or {})
    return writer.commit(limit, command, {"diffssl": "0.1.0"})


def _build(
    path: Path | str,
    *,
    header: StoreHeader = HEADER,
    splits: Mapping[str, int] = SPLITS,
    keys: Sequence[FeatureKey] = KEYS,
    row_blocks: Sequence[int] | None = None,
    left_out: Mapping[tuple[str, int | None], Sequence[int]] | None = None,
    limit: int | None = None,
) -> FeatureStore:
    store = create(path, header)
    for split, n_rows in splits.items():
        add_split(store, split, _ids(split, n_rows), _labels(n_rows))
        add_arrays(store, split, keys, {key: {"kind": "Res", "alpha": 0.5, "sigma": 0.25} for key in keys})
        features = {key: _expected(store, key, split) for key in keys}
        for block in range(-(-min(n_rows, limit or n_rows) // header.row_block)):
            if row_blocks is not None and block not in row_blocks:
                continue
            rows = block_range(n_rows, header.row_block, block)
            for timestep in dict.fromkeys(key.timestep for key in keys):
                bad = [row for row in (left_out or {}).get((split, timestep), ()) if row in rows]
                _commit_unit(
                    store,
                    split,
                    block,
                    {key: features[key][rows.start : rows.stop] for key in keys if key.timestep == timestep},
                    left_out={row: LeftOut(_ids(split, n_rows)[row], "cannot identify image file") for row in bad},
                    limit=limit,
                )
    return store


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Only a loss of power could tell, and no test can make one; ``test_writer`` checks what is synced, and when."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session")
def header() -> StoreHeader:
    return HEADER


@pytest.fixture(scope="session")
def keys() -> list[FeatureKey]:
    return list(KEYS)


@pytest.fixture(scope="session")
def ids() -> Callable[[str, int], NDArray[np.object_]]:
    """``ids(split, n)``: the first n ids of the split in row order."""
    return _ids


@pytest.fixture(scope="session")
def labels() -> Callable[[int], NDArray[np.int32]]:
    """``labels(n)``: -1, 0, 1, -1, ..."""
    return _labels


@pytest.fixture(scope="session")
def expected() -> Callable[[FeatureStore, FeatureKey, str], NDArray[Any]]:
    """``expected(store, key, split)``: the features that ``build`` writes, a function of split and setting."""
    return _expected


@pytest.fixture(scope="session")
def commit_unit() -> Callable[..., Commit]:
    """``commit_unit(store, split, row_block, features)`` writes and commits one unit in one piece."""
    return _commit_unit


@pytest.fixture(scope="session")
def build() -> Callable[..., FeatureStore]:
    """``build(path)`` makes a store and commits every unit of it; see the keywords of ``_build``."""
    return _build


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """A complete store that nobody changes."""
    return _build(tmp_path_factory.mktemp("small") / "feats.zarr")


@pytest.fixture
def store(small: FeatureStore, tmp_path: Path) -> FeatureStore:
    """A complete store of one's own, to damage or to extend."""
    shutil.copytree(small.path, tmp_path / "feats.zarr")
    return FeatureStore.open(tmp_path / "feats.zarr")
