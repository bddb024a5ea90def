"""A process that writes stores, for the tests that start several of them or kill one.

Run as ``python writing_process.py FOLDER NAME``. FOLDER holds ``plan-NAME.json``, a list of trials ``{store, header,
ranks, forever}``, and ``data.npz``. For each trial the process waits until all ``ranks`` processes are there, makes the store
with everything in it (again and again, if ``forever``), and writes how the trials ended to ``NAME.json``.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from diffssl.store import FeatureKey, FeatureStore, IdentityMismatch, StoreHeader, UnitWriter, add_arrays, add_split, create
from diffssl.store.layout import block_range
from numpy.typing import NDArray

BATCH = 2


def wait_for_all(folder: Path, trial: int, name: str, ranks: int) -> None:
    """Return at the same instant in every process."""
    (folder / f"ready-{trial}-{name}").touch()
    while len(list(folder.glob(f"ready-{trial}-*"))) < ranks:
        time.sleep(0.0005)


def write_store(path: Path, header: StoreHeader, data: Mapping[str, NDArray[Any]]) -> None:
    """Create a store and commit all units of its one split: ids, labels and one entry per setting."""
    store = create(path, header)
    ids = data["ids"].astype(object)
    add_split(store, "train", ids, data["labels"])
    keys = [FeatureKey.from_path(name) for name in data if "/" in name]
    add_arrays(store, "train", keys, {key: {"alpha": 0.5} for key in keys})
    for block in range(-(-len(ids) // header.row_block)):
        for timestep in dict.fromkeys(key.timestep for key in keys):
            write_unit(store, block, [key for key in keys if key.timestep == timestep], data)


def write_unit(store: FeatureStore, block: int, keys: list[FeatureKey], data: Mapping[str, NDArray[Any]]) -> None:
    """Commit one unit, in batches, whether somebody else committed it or not."""
    rows = block_range(store.n_rows("train"), store.header.row_block, block)
    writer = UnitWriter(store, "train", block, keys, data["ids"][rows.start : rows.stop].tolist())
    for start in range(rows.start, rows.stop, BATCH):
        writer.write({key: data[key.path][start : min(start + BATCH, rows.stop)] for key in keys}, {})
    writer.commit(None, "diffssl-extract", {"diffssl": "0.1.0"})


def main(folder: Path, name: str) -> None:
    """Do all trials; an error other than ``IdentityMismatch`` ends the process with its traceback."""
    with np.load(folder / "data.npz") as file:
        data = dict(file)
    ends = []
    for number, trial in enumerate(json.loads((folder / f"plan-{name}.json").read_text())):
        wait_for_all(folder, number, name, trial["ranks"])
        try:
            header = StoreHeader.from_json(trial["header"])
            write_store(Path(trial["store"]), header, data)
            while trial["forever"]:
                write_store(Path(trial["store"]), header, data)
            ends.append("done")
        except IdentityMismatch as error:
            ends.append(str(error))
    (folder / f"{name}.json").write_text(json.dumps(ends))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
