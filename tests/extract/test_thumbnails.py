from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffssl.extract import ExtractError, ExtractSpec, TooManyBadSamples, extract
from diffssl.extract.images import decode
from diffssl.extract.job import begin, prepare
from diffssl.extract.pipeline import Pipeline
from diffssl.extract.run import show_plan
from diffssl.extract.thumbnails import shrink
from diffssl.store import FeatureStore, IdentityMismatch, IncompleteFeatures, ThumbnailKey
from diffssl.store.cluster import local_cluster
from diffssl.store.verify import verify
from PIL import Image

MakeSpec = Callable[..., ExtractSpec]
RunExtract = Callable[[ExtractSpec], tuple[FeatureStore, list[str]]]
SameValues = Callable[[FeatureStore, FeatureStore], None]
FilesOf = Callable[[Path], dict[str, str]]

ALONE: dict[str, Any] = {"blocks": {}, "timesteps": ()}  # of features, nothing is asked for


def images_of(files: Mapping[str, str]) -> dict[str, str]:
    return {name: digest for name, digest in files.items() if "/images/" in name}


# --- the pictures


def test_shrinking_is_that_of_pillow() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    small = shrink(pixels, 8)
    assert small.shape == (3, 8, 8, 3)
    wanted = np.asarray(Image.fromarray(pixels[1]).resize((8, 8), resample=Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(small[1], wanted)
    assert shrink(pixels, 16) is pixels
    with pytest.raises(ValueError, match="never larger than the images, got 17 for 16"):
        shrink(pixels, 17)


def test_they_are_what_the_model_saw_at_crop_0(make_spec: MakeSpec, run_extract: RunExtract, photos: Path) -> None:
    store, lines = run_extract(make_spec(thumbnails=8, limit=20, crops=2))
    thumbnails = store.thumbnails("all")
    assert thumbnails.shape == (20, 8, 8, 3)
    for row, name in enumerate(store.ids("all")[:20]):
        seen = decode((photos / name).read_bytes(), 16)
        np.testing.assert_array_equal(thumbnails[row], shrink(seen[None], 8)[0])
    assert "64 forward passes and 32 thumbnails in " in lines[-1]
    assert list(verify(store)) == []


@pytest.mark.parametrize("side", [16, 17, 256])
def test_they_are_never_larger_than_what_the_model_sees(make_spec: MakeSpec, run_extract: RunExtract, side: int) -> None:
    store, lines = run_extract(make_spec(thumbnails=side, limit=16))
    assert store.thumbnails("all").shape == (16, 16, 16, 3)
    assert any(line.startswith("thumbnails have 16x16 pixels, as the images that unet.safetensors sees") for line in lines) == (
        side > 16
    )
    assert run_extract(make_spec(thumbnails=256, limit=16))[1][-1].startswith("nothing to do")


@pytest.mark.parametrize("side", [7, 257, 0])
def test_bounds(make_spec: MakeSpec, side: int) -> None:
    with pytest.raises(ValueError, match=r"from 8 to 256 pixels|at least one block"):
        make_spec(thumbnails=side)


# --- added to features, and features to them


def test_added_alone_they_are_those_of_one_run(
    make_spec: MakeSpec, run_extract: RunExtract, files_of: FilesOf, tmp_path: Path, same_values: SameValues
) -> None:
    """And nothing that is there is touched."""
    whole, _ = run_extract(make_spec(thumbnails=8, store=tmp_path / "whole.zarr"))
    run_extract(make_spec())
    before = files_of(Path(make_spec().store))
    store, lines = run_extract(make_spec(**ALONE, thumbnails=8))
    assert lines[-1].startswith("72 thumbnails in ")
    after = files_of(Path(store.path))
    assert {name: after[name] for name in before} == before
    assert images_of(after) == images_of(files_of(Path(whole.path)))
    same_values(store, whole)
    np.testing.assert_array_equal(store.thumbnails("all"), whole.thumbnails("all"))
    assert run_extract(make_spec(**ALONE, thumbnails=8))[1][-1].startswith("nothing to do")
    assert run_extract(make_spec(thumbnails=8))[1][-1].startswith("nothing to do")


@pytest.mark.parametrize("before", [{"limit": 40}, {}])
def test_beside_a_gpu(make_spec: MakeSpec, run_extract: RunExtract, tmp_path: Path, before: dict[str, Any]) -> None:
    """In the writer's thread while the device computes; where no features are missing of a row block, one at a time."""
    whole, _ = run_extract(make_spec(thumbnails=8, store=tmp_path / "whole.zarr"))
    run_extract(make_spec(**before))
    job, store, backbone = begin(
        prepare(make_spec(thumbnails=8, timesteps=[90] if before else [90, 95], limit=None), lambda _: None)
    )
    assert backbone is not None
    done: list[int] = []
    pipeline = Pipeline(store, job.data.splits, backbone, 0, 2, lambda writer: writer.commit(None, None, {}), done.append)
    pipeline._side_by_side = True
    pipeline.run(job.plan.work)
    assert sum(done) == job.plan.steps
    np.testing.assert_array_equal(FeatureStore.open(store.path).thumbnails("all"), whole.thumbnails("all"))
    assert list(verify(FeatureStore.open(store.path))) == []


def test_without_them_a_store_is_what_it_was(make_spec: MakeSpec, run_extract: RunExtract, files_of: FilesOf) -> None:
    store, _ = run_extract(make_spec())
    assert not [name for name in files_of(Path(store.path)) if "images" in name]


def test_missing_features_and_thumbnails_of_different_row_blocks(
    make_spec: MakeSpec, run_extract: RunExtract, same_values: SameValues, tmp_path: Path
) -> None:
    run_extract(make_spec(limit=32))
    run_extract(make_spec(**ALONE, thumbnails=8, limit=48))
    spec = make_spec(thumbnails=8)
    plan = prepare(spec, lambda _: None).plan
    assert [(len(work.keys), work.thumbnails is not None) for work in plan.work] == [(1, False), (1, True), (1, True)]
    assert (plan.done, plan.units, plan.forwards, plan.thumbnails) == (5, 10, 40, 24)
    store, _ = run_extract(spec)
    same_values(store, run_extract(make_spec(store=tmp_path / "other.zarr"))[0])
    assert store.thumbnails("all").shape == (72, 8, 8, 3)


def test_a_limit_that_is_raised(make_spec: MakeSpec, run_extract: RunExtract) -> None:
    run_extract(make_spec())
    for limit in (5, 13, 40, None):
        store, _ = run_extract(make_spec(**ALONE, thumbnails=8, limit=limit))
        assert len(store.thumbnails("all")) == (limit or 72)


def test_the_backbone_and_torch_are_not_needed(make_spec: MakeSpec, run_extract: RunExtract, tiny: Mapping[str, Path]) -> None:
    spec = make_spec(limit=16)
    run_extract(spec)
    arguments = ["--thumbnails", "8", "--data", *spec.data, "--store", str(spec.store)]
    arguments += ["--checkpoint", str(tiny["checkpoint"]), "--model-config", str(tiny["model_config"])]
    code = "import sys; from diffssl.extract.cli import main\ntry:\n    main()\nfinally:\n    print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True)
    assert run.stdout.splitlines()[-1] == "False"
    assert FeatureStore.open(spec.store).thumbnails("all").shape == (72, 8, 8, 3)


def test_a_store_without_blocks_is_no_store(make_spec: MakeSpec) -> None:
    with pytest.raises(ExtractError, match="no store to add thumbnails to; make one with --blocks"):
        extract(make_spec(**ALONE, thumbnails=8), lambda _: None)
    with pytest.raises(ValueError, match="at least one block"):
        make_spec(**ALONE)
    with pytest.raises(ValueError, match="timesteps are of blocks"):
        make_spec(blocks={}, thumbnails=8)


def test_documents_that_were_lost(make_spec: MakeSpec, run_extract: RunExtract) -> None:
    store, _ = run_extract(make_spec(thumbnails=8, limit=16))
    document = Path(store.path) / "all/images/thumbnail/zarr.json"
    content = document.read_bytes()
    document.unlink()
    _, lines = run_extract(make_spec(thumbnails=8, limit=16))
    assert lines[-1].startswith("1 documents were missing and are there again, such as all/images/thumbnail/zarr.json")
    assert document.read_bytes() == content


# --- what cannot be


def test_another_size_is_refused(make_spec: MakeSpec, run_extract: RunExtract, files_of: FilesOf) -> None:
    store, _ = run_extract(make_spec(thumbnails=8, limit=16))
    before = files_of(Path(store.path))
    for options in ({}, ALONE):
        with pytest.raises(IdentityMismatch, match=r"--thumbnails 8, or remove them .*\n  thumbnails: store has 8, now 12"):
            extract(make_spec(**options, thumbnails=12), lambda _: None)
    assert files_of(Path(store.path)) == before


def test_images_that_cannot_be_decoded(make_spec: MakeSpec, photos: Path, tmp_path: Path, run_extract: RunExtract) -> None:
    data = tmp_path / "data"
    for path in photos.rglob("*"):
        if path.is_file():
            (data / path.relative_to(photos)).parent.mkdir(parents=True, exist_ok=True)
            (data / path.relative_to(photos)).write_bytes(path.read_bytes())
    run_extract(make_spec(data=(str(data),)))
    names = sorted(path for path in data.rglob("*") if path.is_file())[:2]
    for path in names:
        path.write_bytes(b"")
    spec = make_spec(**ALONE, data=(str(data),), thumbnails=8)
    with pytest.raises(TooManyBadSamples, match="2 of 72 images could not be decoded"):
        extract(spec, lambda _: None)
    store, lines = run_extract(replace(spec, max_bad=2))
    assert lines[-1].startswith("2 of 72 images could not be decoded and are left out, such as all ")
    bad = store.journal.left_out("all", ThumbnailKey(8))
    assert {sample.id for sample in bad.values()} == {path.relative_to(data).as_posix() for path in names}
    black = ~store.thumbnails("all").reshape(72, -1).any(axis=1)
    assert sorted(np.flatnonzero(black)) == sorted(bad)
    assert not store.journal.left_out("all", store.keys("all")[0])  # features are there


# --- plans


def test_a_run_writes_what_was_planned(make_spec: MakeSpec, run_extract: RunExtract, files_of: FilesOf) -> None:
    run_extract(make_spec())
    before = set(files_of(Path(make_spec().store)))
    spec = make_spec(**ALONE, thumbnails=8)
    lines: list[str] = []
    show_plan(prepare(spec, lines.append), measure=True, echo=lines.append)
    assert lines[-4:-1] == [
        "settings    none; thumbnails of 8x8 pixels",
        "there       0 of 5 units (row block of 16 rows x timestep, or its thumbnails)",
        "to compute  72 images, 0 forward passes in batches of 8, 0 TFLOP, 72 thumbnails",
    ]
    plan = prepare(spec, lambda _: None).plan
    store, _ = run_extract(spec)
    new = set(files_of(Path(store.path))) - before
    assert plan.files == len(new) - 1  # the group's document is in no plan
    shards = [Path(store.path) / name for name in new if "/c." in name]
    assert sum(path.stat().st_size for path in shards) < plan.bytes
    assert (plan.arrays, plan.units, len(shards)) == (1, 5, 5)


# --- many processes


def test_parts_and_workers(make_spec: MakeSpec, run_extract: RunExtract, tmp_path: Path, files_of: FilesOf) -> None:
    whole, _ = run_extract(make_spec(thumbnails=8, store=tmp_path / "whole.zarr"))
    spec = make_spec(thumbnails=8)
    for part in (1, 0):
        store, _ = run_extract(replace(spec, part=(part, 2)))
    assert images_of(files_of(Path(store.path))) == images_of(files_of(Path(whole.path)))

    run_extract(make_spec(store=tmp_path / "dask.zarr"))
    with local_cluster(2, 0) as client:
        assert client.scheduler is not None
        spec = make_spec(**ALONE, thumbnails=8, store=tmp_path / "dask.zarr")
        lines: list[str] = []
        assert client.scheduler is not None
        extract(spec, lines.append, dask=client.scheduler.address)
    assert lines[-1].startswith("72 thumbnails in ")
    assert images_of(files_of(tmp_path / "dask.zarr")) == images_of(files_of(Path(whole.path)))


def test_in_a_bucket(make_spec: MakeSpec, run_extract: RunExtract, s3: Any) -> None:
    url = f"{s3.bucket()}/feats.zarr"
    run_extract(make_spec(store=url, limit=32))
    here, _ = run_extract(make_spec(thumbnails=8, limit=32))
    store, _ = run_extract(make_spec(**ALONE, store=url, thumbnails=8, limit=20))
    np.testing.assert_array_equal(store.thumbnails("all"), here.thumbnails("all", slice(20)))
    with pytest.raises(IncompleteFeatures, match="40 of 72 rows of all, thumbnails of 8x8 pixels"):
        store.thumbnails("all", slice(0, 72))
    assert list(verify(store)) == []
