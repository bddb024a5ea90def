from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from diffssl.analysis.pictures import MapColours, NoPicture, fit_colours, pca_images
from diffssl.store import FeatureKey, FeatureStore, IncompleteFeatures
from numpy.typing import NDArray
from sklearn.decomposition import PCA

MakeStore = Callable[..., FeatureStore]

KEY, SMALL, VECTOR = FeatureKey(1, 10, 4), FeatureKey(3, 10, 2), FeatureKey(1, 10, 1)


def low_rank(key: FeatureKey, _: str, labels: NDArray[np.int32]) -> NDArray[Any]:
    """Maps with three directions of clearly different strength, a far mean and a little noise."""
    rng = np.random.default_rng([len(labels), key.block])
    axes = np.linalg.qr(rng.normal(size=(8, 8)))[0][:3]
    assert isinstance(key.pool, int)
    side = key.pool
    values = rng.normal(size=(len(labels), side, side, 3)) * [9, 4, 2] @ axes + 20
    maps: NDArray[Any] = (values + 0.01 * rng.normal(size=values.shape)).transpose(0, 3, 1, 2)
    return maps


@pytest.fixture
def store(make_store: MakeStore) -> FeatureStore:
    return make_store(
        {"all": 200}, [KEY, SMALL, VECTOR], features=low_rank, dtype="float32", left_out={KEY: ["c01/all-00005.png"]}
    )


def test_axes_are_those_of_sklearn(store: FeatureStore) -> None:
    colours = fit_colours(store, KEY, "all", range(120))
    maps = store.read(KEY, "all", slice(0, 120))
    maps = maps[np.isfinite(maps).all(axis=(1, 2, 3))]
    positions = (maps - maps.mean(axis=0, dtype=np.float64)).transpose(0, 2, 3, 1).reshape(-1, 8)
    pca = PCA(3).fit(positions)
    for ours, theirs in zip(colours.components, pca.components_, strict=True):
        assert abs(ours @ theirs) == pytest.approx(1, abs=1e-9)
        assert ours[np.abs(ours).argmax()] > 0
    values = positions @ colours.components.T
    np.testing.assert_allclose(colours.low, np.percentile(values, 1, axis=0), rtol=1e-6)
    np.testing.assert_allclose(colours.high, np.percentile(values, 99, axis=0), rtol=1e-6)


def test_colours_are_values_on_the_axes(store: FeatureStore) -> None:
    rows = [151, 4]
    pictures = pca_images(store, [KEY, SMALL], "all", rows, fit_rows=100)
    assert {key: picture.shape for key, picture in pictures.items()} == {KEY: (2, 4, 4, 3), SMALL: (2, 2, 2, 3)}
    assert all(picture.dtype == np.uint8 for picture in pictures.values())
    colours = fit_colours(store, KEY, "all", range(100))
    for i, row in enumerate(rows):
        for y, x in ((0, 0), (1, 3)):
            position = store.read(KEY, "all", slice(row, row + 1))[0, :, y, x].astype(np.float64)
            value = (colours.components @ (position - colours.mean[:, y, x]) - colours.low) / (colours.high - colours.low)
            np.testing.assert_array_equal(pictures[KEY][i, y, x], np.rint(255 * np.clip(value, 0, 1)))


def test_outliers_do_not_darken_the_rest() -> None:
    """One position a thousand times as strong is clipped: percentiles, not extremes."""
    colours = MapColours(np.zeros((3, 1, 3)), np.eye(3), np.full(3, -1.0), np.full(3, 1.0))
    maps = np.zeros((1, 3, 1, 3))
    maps[0, 0] = [-1000, 0, 1000]
    np.testing.assert_array_equal(colours.paint(maps)[0, 0, :, 0], [0, 128, 255])


def test_fewer_channels_than_colours_and_a_constant(make_store: MakeStore) -> None:
    def two(_: FeatureKey, __: str, labels: NDArray[np.int32]) -> NDArray[Any]:
        values = np.full((len(labels), 2, 4, 4), 3.0)
        values[:, 0] = np.random.default_rng(0).permutation(16 * len(labels)).reshape(-1, 4, 4)
        return values

    store = make_store({"all": 70}, [KEY], channels=2, features=two)
    picture = pca_images(store, [KEY], "all", [0])[KEY][0]
    assert (picture[..., 2] == 128).all()
    assert len(np.unique(picture[..., 0])) > 8


def test_what_is_in_every_image_is_not_shown(make_store: MakeStore) -> None:
    """A pattern a hundred times as strong as what differs, at the same place of every map."""
    rng = np.random.default_rng(3)
    pattern, own = 100 * rng.normal(size=(8, 4, 4)), rng.normal(size=(70, 8, 4, 4))
    plain = make_store({"all": 70}, [KEY], name="plain.zarr", features=lambda *_: own, dtype="float32")
    covered = make_store({"all": 70}, [KEY], name="covered.zarr", features=lambda *_: own + pattern, dtype="float32")
    pictures = [pca_images(store, [KEY], "all", [0, 50])[KEY].astype(int) for store in (plain, covered)]
    assert np.abs(pictures[0] - pictures[1]).max() <= 1


def test_a_vector_has_no_picture(store: FeatureStore) -> None:
    with pytest.raises(NoPicture, match="block 1, timestep 10, pool 1 has no picture: it has no map"):
        pca_images(store, [VECTOR], "all", [0])


def test_a_row_that_was_left_out_has_none(store: FeatureStore) -> None:
    (row,) = store.journal.left_out("all", KEY)
    with pytest.raises(NoPicture, match=r"'c01/all-00005.png' has no features at .*could not be decoded \(cut short\)"):
        pca_images(store, [KEY], "all", [0 if row else 1, row])


def test_rows_that_are_not_there(make_store: MakeStore) -> None:
    store = make_store({"all": 200}, [KEY], only_blocks=[0], limit=64)
    assert pca_images(store, [KEY], "all", [63])[KEY].shape == (1, 4, 4, 3)
    with pytest.raises(IncompleteFeatures):
        pca_images(store, [KEY], "all", [64])
