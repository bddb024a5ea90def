"""Make the golden store of format 1: ``python tests/golden/make_store_1.py FOLDER``.

It was run once, with zarr 3.1.6, and its result was committed as ``tests/golden/store-1``. It is not run again to replace
that folder: a change of the format has a new number, and a new golden store beside this one.

Every kind of thing that format 1 knows is in it: two splits with a short last row block, an unlabelled row, two pools, two
timesteps, two draws, a class token without timestep, a row left out, a pilot's limit, and one unit with two commits. Values
are ``row + channel / 8 + (2 y + x) / 64 + timestep / 4``, exact in float16, so that a test can say what must be there.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
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
from diffssl.store.layout import block_range
from numpy.typing import NDArray

HEADER = StoreHeader(
    identity=Identity({"weights": "5f1d", "model": {"channels": 32}, "noise": {"scheme": 1, "seed": 0}, "conditioning": None}),
    classes=["Hündin", "cat"],
    row_block=4,
    batch_size=2,
    dtype="float16",
    memory_format="channels_last",
    blocks=[Block(1, "Conv", 2, 4, 0.5, 0.25), Block(2, "Res+Attn", 3, 2, 2.0, 1.0)],
    model="tiny",
    versions={"diffssl": "0.1.0"},
)
KEYS = [
    FeatureKey(1, 10, 1),
    FeatureKey(2, 10, 2),
    FeatureKey(2, 90, 2),
    FeatureKey(2, 90, 2, draw=1),
    FeatureKey(2, None, "cls"),
]
BAD_ROW = 5  # of train, at timestep 90


def golden_ids(split: str, n_rows: int) -> NDArray[np.object_]:
    """Ids of a split in row order."""
    names = [f"{('Hündin', 'cat')[i % 2]}/{split}-{i}.png" for i in range(n_rows)]
    ids: NDArray[np.object_] = np.array(names, dtype=object)[row_order(names)]
    return ids


def golden_values(store: FeatureStore, key: FeatureKey, split: str) -> NDArray[Any]:
    """What was written, row left out apart."""
    layout = store.layout(key, split)
    row, channel, y, x = np.indices((layout.rows, *layout.row_shape))
    values: NDArray[Any] = row + channel / 8 + (2 * y + x) / 64 + ((key.timestep or 0) + key.draw) / 4
    return values.astype(layout.dtype)


def make(folder: Path) -> FeatureStore:
    """Write the store."""
    store = create(folder, HEADER)
    for split, n_rows, limit in (("train", 10, None), ("test", 6, 3)):
        ids = golden_ids(split, n_rows)
        labels = np.array([HEADER.classes.index(name.split("/")[0]) for name in ids], dtype=np.int32)
        labels[0] = -1
        add_split(store, split, ids, labels)
        add_arrays(store, split, KEYS, {key: {"kind": "Res", "channels": 3, "alpha": 0.5, "later": [1, None]} for key in KEYS})
        for row_block in range(-(-(limit or n_rows) // HEADER.row_block)):
            rows = block_range(n_rows, HEADER.row_block, row_block)
            for timestep in (10, 90, None):
                keys = [key for key in KEYS if key.timestep == timestep]
                bad = (
                    {BAD_ROW: LeftOut(ids[BAD_ROW], "truncated")}
                    if timestep == 90 and BAD_ROW in rows and limit is None
                    else {}
                )
                for offset in (1, 0) if timestep == 10 and row_block == 0 else (0,):
                    writer = UnitWriter(store, split, row_block, keys, ids[rows.start : rows.stop].tolist())
                    writer.write(
                        {key: golden_values(store, key, split)[rows.start : rows.stop] + np.float16(offset) for key in keys},
                        bad,
                    )
                    writer.commit(limit, "diffssl-extract --blocks 1,2", {"diffssl": "0.1.0"})
    return store


if __name__ == "__main__":
    make(Path(sys.argv[1]))
