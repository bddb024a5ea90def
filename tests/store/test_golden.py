"""The committed store of format 1: what was written once stays readable, and is written the same.

``tests/golden/store-1`` was made once by ``python tests/golden/make_store_1.py tests/golden/store-1``. Nothing here makes it
anew: if it is missing or different, these tests fail.
"""

from __future__ import annotations

import runpy
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from diffssl.store import FeatureKey, FeatureStore, LeftOut
from diffssl.store.verify import verify
from numpy.typing import NDArray

FOLDER = Path(__file__).parents[1] / "golden" / "store-1"
TREE = "191ffaaafe324f2d1c284864d589f524388b07877eb79103da27d012c45efd77"
TRAIN = [
    "cat/train-3.png",
    "Hündin/train-6.png",
    "Hündin/train-2.png",
    "cat/train-7.png",
    "Hündin/train-4.png",
    "cat/train-9.png",
    "Hündin/train-0.png",
    "cat/train-5.png",
    "cat/train-1.png",
    "Hündin/train-8.png",
]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def golden() -> FeatureStore:
    return FeatureStore.open(FOLDER)


def expected(key: FeatureKey, n_rows: int, channels: int, side: int) -> NDArray[Any]:
    row, channel, y, x = np.indices((n_rows, channels, side, side))
    values: NDArray[Any] = row + channel / 8 + (2 * y + x) / 64 + ((key.timestep or 0) + key.draw) / 4
    return values.astype(np.float16)


def test_its_files_are_those_that_were_committed() -> None:
    total = sha256()
    for name, content in contents(FOLDER).items():
        total.update(name.encode() + b"\0" + sha256(content).digest())
    assert total.hexdigest() == TREE


def test_identity_and_rows(golden: FeatureStore) -> None:
    assert golden.feature_id == "2d5ae24a98a750c697194f88f23e8729"
    assert golden.identity.fields["noise"] == {"scheme": 1, "seed": 0}
    assert golden.classes == ["Hündin", "cat"]
    assert golden.splits == ["test", "train"]
    assert golden.data_id("train") == "a5e6513ea33183ff2efc89abd9d34c6f"
    assert golden.data_id("test") == "0b7cdee8c66ed6a6b19a7109c5e8660b"
    rows = golden.rows("train")
    assert rows.ids.tolist() == TRAIN
    assert rows.labels.tolist() == [-1, 0, 0, 1, 0, 1, 0, 1, 1, 0]
    assert rows.left_out == {5: LeftOut("cat/train-9.png", "truncated")}
    assert golden.labels("test").tolist() == [-1, 0, 1, 1, 0, 0]


def test_features(golden: FeatureStore) -> None:
    shapes = {
        FeatureKey(1, 10, 1): (2, 1),
        FeatureKey(2, None, "cls"): (3, 1),
        FeatureKey(2, 10, 2): (3, 2),
        FeatureKey(2, 90, 2): (3, 2),
        FeatureKey(2, 90, 2, draw=1): (3, 2),
    }
    assert golden.keys("train") == golden.keys("test") == list(shapes)
    for key, (channels, side) in shapes.items():
        train = expected(key, 10, channels, side)
        if key.timestep == 90:
            train[5] = np.nan
        np.testing.assert_array_equal(golden.read(key, "train"), train)
        np.testing.assert_array_equal(golden.read(key, "test"), expected(key, 3, channels, side))
        assert golden.missing([key], "test") == [1]
    array = zarr.open_array(FOLDER / "train/features/b2/p2/t10", mode="r")
    np.testing.assert_array_equal(np.asarray(array[:]), expected(FeatureKey(2, 10, 2), 10, 3, 2))


def test_it_is_sound(golden: FeatureStore) -> None:
    assert list(verify(golden)) == []
    assert golden.journal.commits() == 14


def test_this_version_writes_the_same_bytes(tmp_path: Path) -> None:
    """The ``rows`` arrays apart: zarr and zstd write them, and their versions may differ in bytes that mean the same."""
    runpy.run_path(str(FOLDER.with_name("make_store_1.py")))["make"](tmp_path / "store-1")
    now, then = contents(tmp_path / "store-1"), contents(FOLDER)
    assert now.keys() == then.keys()
    assert [name for name in then if "/rows/" not in name and now[name] != then[name]] == []
    again = FeatureStore.open(tmp_path / "store-1")
    assert again.rows("train").ids.tolist() == TRAIN
