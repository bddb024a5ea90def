from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffssl.extract import ExtractSpec, noise_for
from diffssl.extract.crops import RandomCrop, crop_for
from diffssl.extract.images import decode
from diffssl.extract.job import load_backbone, prepare
from diffssl.extract.pooling import pool_map
from diffssl.store import FeatureKey, FeatureStore
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_image

MakeSpec = Callable[..., ExtractSpec]
RunExtract = Callable[[ExtractSpec], tuple[FeatureStore, list[str]]]


@pytest.fixture(scope="module")
def photograph() -> bytes:
    content = io.BytesIO()
    Image.fromarray(load_sample_image("flower.jpg")).save(content, format="PNG")  # 640 x 427
    return content.getvalue()


def test_golden_crops() -> None:
    """Fixed for ever: a store's crops must be found again."""
    assert crop_for(0, "airplane/0001.jpg", 1, 256) == RandomCrop(
        shorter=320, top=0.3188494082749366, left=0.6636623573835972, flip=False
    )
    assert crop_for(7, "flower/é.png", 3, 32) == RandomCrop(
        shorter=37, top=0.9568302545281177, left=0.693434788152831, flip=True
    )


def test_a_crop_is_a_function_of_its_arguments() -> None:
    crops = {(seed, name, number): crop_for(seed, name, number, 256) for seed in (0, 1) for name in "ab" for number in (1, 2)}
    assert len(set(crops.values())) == len(crops)
    assert crops == {key: crop_for(*key, 256) for key in reversed(list(crops))}
    assert crop_for(0, "a", 0, 256) is None


@pytest.mark.parametrize(("size", "largest"), [(256, 320), (64, 80), (32, 40), (224, 280)])
def test_the_distribution_is_that_of_the_papers(size: int, largest: int) -> None:
    crops = [crop for i in range(4000) if (crop := crop_for(0, f"{i}", 1, size))]
    sizes, counts = np.unique([crop.shorter for crop in crops], return_counts=True)
    assert sizes.tolist() == list(range(size, largest + 1))
    expected = len(crops) / len(sizes)
    assert (abs(counts - expected) < 5 * expected**0.5).all()
    for values in ([crop.top for crop in crops], [crop.left for crop in crops]):
        assert abs(np.mean(values) - 0.5) < 0.03
        assert (min(values) < 0.01, max(values) > 0.99) == (True, True)
    assert abs(np.mean([crop.flip for crop in crops]) - 0.5) < 0.04


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("place", [(0.0, 0.0), (0.37, 0.81), (0.999999, 0.999999)])
def test_pixels_of_a_crop(photograph: bytes, flip: bool, place: tuple[float, float]) -> None:
    """As guided-diffusion's random_crop_arr makes them, here by hand: halvings, bicubic, crop, mirror."""
    crop = RandomCrop(shorter=75, top=place[0], left=place[1], flip=flip)
    image: Image.Image = Image.open(io.BytesIO(photograph))
    for size in ((320, 213), (160, 106)):
        image = image.resize(size, Image.Resampling.BOX)
    image = image.resize((round(160 * 75 / 106), 75), Image.Resampling.BICUBIC)
    top, left = int(place[0] * (75 - 64 + 1)), int(place[1] * (image.width - 64 + 1))
    image = image.crop((left, top, left + 64, top + 64))
    assert np.array_equal(decode(photograph, 64, crop), np.asarray(ImageOps.mirror(image) if flip else image))


def test_no_crop_is_the_centre_crop(photograph: bytes) -> None:
    assert np.array_equal(decode(photograph, 64, None), decode(photograph, 64))


# Extraction


def test_crops_are_for_training_rows_only(
    tmp_path: Path, make_spec: MakeSpec, run_extract: RunExtract, write_images: Callable[..., None]
) -> None:
    write_images(tmp_path / "data", [f"{split}/{i % 2}/{i:02d}.png" for split in ("train", "val", "test") for i in range(6)])
    store, _ = run_extract(make_spec(data=(str(tmp_path / "data"),), blocks={3: set()}, crops=3))
    assert store.keys("train") == [FeatureKey(3, 90, 1, 0, crop) for crop in range(3)]
    assert store.keys("test") == store.keys("val") == [FeatureKey(3, 90, 1)]


@pytest.mark.parametrize("noise", ["gaussian", "none"])
def test_features_of_a_crop(noise: str, make_spec: MakeSpec, run_extract: RunExtract, photos: Path) -> None:
    """Each is the pooled activation of its own pixels with its own noise."""
    spec = make_spec(blocks={3: set()}, crops=2, noise=noise, seed=5 if noise == "gaussian" else None, store_dtype="float32")
    store, _ = run_extract(spec)
    backbone = load_backbone(prepare(spec, lambda _: None))
    seed = 5 if noise == "gaussian" else 0
    ids = store.ids("all")[:8]
    for crop in (0, 1):
        pixels = np.stack([decode((photos / name).read_bytes(), 16, crop_for(seed, name, crop, 16)) for name in ids])
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1
        if noise == "gaussian":
            eps = np.stack([noise_for(seed, name, 90, (3, 16, 16), crop=crop) for name in ids])
            x = backbone.diffuse(x, torch.from_numpy(eps), 90)
        with torch.inference_mode():
            ((_, activation),) = backbone.features(x, 90, [3])
        expected = pool_map(activation, [1])[1].numpy()
        assert np.array_equal(store.read(FeatureKey(3, 90, 1, 0, crop), "all", slice(8)), expected)


def test_crops_and_draws_are_added_later_without_touching_the_rest(
    make_spec: MakeSpec,
    run_extract: RunExtract,
    files_of: Callable[[Path], dict[str, str]],
    same_values: Callable[[FeatureStore, FeatureStore], None],
    tmp_path: Path,
) -> None:
    spec = make_spec(blocks={3: set()})
    run_extract(spec)
    before = files_of(Path(spec.store))
    run_extract(replace(spec, crops=2))
    store, _ = run_extract(replace(spec, crops=2, draws=2))
    after = files_of(Path(spec.store))
    assert {name: after[name] for name in before} == before
    assert [(key.draw, key.crop) for key in store.keys("all")] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    at_once, _ = run_extract(replace(spec, crops=2, draws=2, store=tmp_path / "at_once.zarr"))
    same_values(store, at_once)


def test_all_crops_and_draws_differ(make_spec: MakeSpec, run_extract: RunExtract) -> None:
    store, _ = run_extract(make_spec(blocks={3: set()}, crops=2, draws=2))
    values = [store.read(key, "all").tobytes() for key in store.keys("all")]
    assert len(values) == len(set(values)) == 4
