from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffssl.extract import DataError, ExtractError, ExtractSpec, TooManyBadSamples, UnknownBlock, extract, loading
from diffssl.extract.job import prepare
from diffssl.extract.zoo import BUNDLED, DEFAULTS, PUBLISHED
from diffssl.store import (
    DiffsslError,
    FeatureKey,
    FeatureStore,
    IdentityMismatch,
    NotFinite,
    StorageFull,
    StoreError,
)
from diffssl.store.storage import LocalStorage
from diffssl.store.verify import verify

MakeSpec = Callable[..., ExtractSpec]
RunExtract = Callable[[ExtractSpec], tuple[FeatureStore, list[str]]]
SameValues = Callable[[FeatureStore, FeatureStore], None]
FilesOf = Callable[[Path], dict[str, str]]
Write = Callable[[Path, Iterable[str]], None]
SaveModel = Callable[..., dict[str, Path]]

KEY = FeatureKey(5, 90, 1)
TINY = {"image_size": 16, "num_channels": 32, "channel_mult": "1,2", "num_res_blocks": 1, "attention_resolutions": "8"}


def forwards(lines: list[str]) -> int:
    """Forward passes of a run, by what it prints at its end; 0 for a run that had nothing to do."""
    if any("nothing to do" in line for line in lines):
        return 0
    return int(re.match(r"(\d+) forward passes in ", lines[-1])[1])  # type: ignore[index]


# --- extending


EXTENSIONS: list[tuple[dict[str, Any], dict[str, Any], int]] = [
    ({}, {"blocks": {1: set(), 3: set(), 5: set(), 9: set()}}, 72),
    ({}, {"blocks": {3: {4}, 5: {"full"}}}, 72),
    ({}, {"draws": 2}, 72),
    ({"limit": 20}, {}, 40),
    ({"limit": 20}, {"limit": 40}, 16),
    ({"limit": 20, "timesteps": [10, 90]}, {"timesteps": [90], "blocks": {2: set(), 5: set()}}, 72),
    ({"draws": 2, "limit": 16}, {"draws": 1, "timesteps": [90, 91], "pools": (1, 16)}, 2 * 72),
]


@pytest.mark.parametrize(("first", "second", "missing"), EXTENSIONS, ids=str)
def test_extending_computes_what_is_missing(
    make_spec: MakeSpec,
    run_extract: RunExtract,
    files_of: FilesOf,
    first: dict[str, Any],
    second: dict[str, Any],
    missing: int,
) -> None:
    """Blocks, timesteps, pools, draws, rows: nothing that is there is computed again or touched."""
    run_extract(make_spec(**first))
    path = Path(make_spec().store)
    before = files_of(path)
    store, lines = run_extract(make_spec(**second))
    assert forwards(lines) == missing
    after = files_of(path)
    assert {name: after.get(name) for name in before} == before
    assert len(after) > len(before)
    assert list(verify(store)) == []
    big, _ = run_extract(make_spec(**second, store=path.with_name("big.zarr")))
    assert set(big.keys("all")) <= set(store.keys("all"))
    assert store.ids("all").tolist() == big.ids("all").tolist()
    for key in big.keys("all"):
        assert store.missing([key], "all", second.get("limit")) == []
        np.testing.assert_array_equal(store.read(key, "all"), big.read(key, "all"), err_msg=str(key))


def test_extending_step_by_step_is_one_big_run(
    make_spec: MakeSpec, run_extract: RunExtract, files_of: FilesOf, same_values: SameValues
) -> None:
    steps: list[dict[str, Any]] = [
        {"blocks": {5: set()}, "timesteps": [90], "limit": 16},
        {"blocks": {5: set()}, "timesteps": [90], "limit": 33},
        {"blocks": {5: set(), 3: set()}, "timesteps": [90], "limit": 33},
        {"blocks": {3: {1, 2}, 5: {1, 2}}, "timesteps": [10, 90], "limit": 33},
        {"blocks": {3: {1, 2}, 5: {1, 2}}, "timesteps": [10, 90]},
        {"blocks": {3: {1, 2}, 5: {1, 2}}, "timesteps": [10, 90], "draws": 2},
    ]
    seen: dict[str, str] = {}
    for step in steps:
        store, lines = run_extract(make_spec(**step))
        files = files_of(Path(make_spec().store))
        assert {name: files[name] for name in seen} == seen
        assert forwards(lines) > 0
        seen = files
    big, _ = run_extract(make_spec(**steps[-1], store=Path(make_spec().store).with_name("big.zarr")))
    same_values(store, big)
    assert forwards(run_extract(make_spec(**steps[-1]))[1]) == 0


def test_a_limit_raised_within_a_row_block_computes_nothing(
    make_spec: MakeSpec, run_extract: RunExtract, files_of: FilesOf
) -> None:
    """The rows are there; from now on readers give them."""
    store, _ = run_extract(make_spec(limit=5))
    assert store.read(KEY, "all").shape[0] == 5
    before = files_of(Path(make_spec().store))
    store, lines = run_extract(make_spec(limit=13))
    assert forwards(lines) == 0
    assert store.read(KEY, "all").shape[0] == 13
    after = files_of(Path(make_spec().store))
    assert {name: after[name] for name in before} == before
    assert all(name.startswith("journal/all/") for name in after.keys() - before.keys())
    lower, _ = run_extract(make_spec(limit=3))
    assert lower.read(KEY, "all").shape[0] == 13


def test_a_split_is_added(
    tmp_path: Path,
    photos: Path,
    make_spec: MakeSpec,
    run_extract: RunExtract,
    files_of: FilesOf,
    same_values: SameValues,
    write_images: Write,
) -> None:
    """Alone or with those that are there; its labels are the store's, though it lacks a class."""
    write_images(tmp_path / "new", ["bridge/new1.png", "roof/new2.png", "roof/new3.png"])
    train, test = f"train={photos}", f"test={tmp_path / 'new'}"
    run_extract(make_spec(data=(train,)))
    before = files_of(Path(make_spec().store))
    store, lines = run_extract(make_spec(data=(test,)))
    assert forwards(lines) == 3
    after = files_of(Path(make_spec().store))
    assert {name: after[name] for name in before} == before
    assert store.splits == ["test", "train"]
    assert store.classes == ["bridge", "flower", "roof"]
    for split in store.splits:
        names = [name.split("/")[0] for name in store.ids(split)]
        assert [store.classes[label] for label in store.labels(split)] == names
    big, _ = run_extract(make_spec(data=(train, test), store=tmp_path / "big.zarr"))
    same_values(store, big)
    again, lines = run_extract(make_spec(data=(train, test)))
    assert forwards(lines) == 0
    assert not [line for line in lines if "labels differ" in line]
    same_values(again, big)


def test_a_split_with_a_new_class_is_refused(
    tmp_path: Path, photos: Path, make_spec: MakeSpec, run_extract: RunExtract, files_of: FilesOf, write_images: Write
) -> None:
    """Labels are made once, from the union of all splits."""
    write_images(tmp_path / "new", ["ant/1.png", "bridge/2.png"])
    run_extract(make_spec(data=(f"train={photos}",), limit=16))
    before = files_of(Path(make_spec().store))
    with pytest.raises(IdentityMismatch, match="classes") as caught:
        run_extract(make_spec(data=(f"test={tmp_path / 'new'}",)))
    assert "ant" in str(caught.value)
    assert files_of(Path(make_spec().store)) == before


def test_the_second_identical_run_does_nothing(make_spec: MakeSpec, run_extract: RunExtract, tmp_path: Path) -> None:
    run_extract(make_spec())
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    _, lines = run_extract(make_spec())
    assert lines[-1] == f"nothing to do: {tmp_path / 'feats.zarr'} has all 5 units"
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_nothing_to_do_imports_no_torch(make_spec: MakeSpec, run_extract: RunExtract, tiny: Mapping[str, Path]) -> None:
    spec = make_spec(limit=16)
    run_extract(spec)
    arguments = ["--blocks", "3,5", "--timesteps", "90", "--data", *spec.data, "--store", str(spec.store), "--limit", "16"]
    arguments += ["--checkpoint", str(tiny["checkpoint"]), "--model-config", str(tiny["model_config"])]
    code = (
        "import sys; from diffssl.extract.cli import main\n"
        "try:\n    main()\nfinally:\n    print(sorted({'torch', 'guided_diffusion', 'matplotlib'} & set(sys.modules)))"
    )
    for extra in ([], ["--plan"]):
        output = subprocess.run(
            [sys.executable, "-c", code, *arguments, *extra], check=True, capture_output=True, text=True
        ).stdout.splitlines()
        assert output[-1] == "[]"
        assert ("nothing to do" in output[-2]) != bool(extra)


# --- options and identity


MISMATCHES: list[tuple[dict[str, Any], list[str]]] = [
    ({"seed": 1}, ["noise.seed: store has 0, now 1"]),
    ({"batch_size": 16}, ["batch_size: store has 8, now 16"]),
    ({"row_block": 32}, ["row_block: store has 16, now 32"]),
    ({"store_dtype": "float32"}, ["dtype: store has 'float16', now 'float32'"]),
    ({"dtype": "bfloat16", "seed": 3}, ["compute_dtype: store has 'float32', now 'bfloat16'", "noise.seed"]),
    ({"noise": "none"}, ["noise.scheme: store has 1, now 'none'", "noise.seed: store has 0, now None"]),
    ({"model": BUNDLED}, ["weights_sha256: store has", "preprocessing.size: store has 16, now 32"]),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, photos: Path, tiny: dict[str, Any], run_extract: RunExtract) -> Path:
    """A small store with every default. Tests leave it as it is."""
    path = tmp_path_factory.mktemp("made") / "feats.zarr"
    spec = ExtractSpec(
        {3: set(), 5: set()}, [90], data=(str(photos),), store=path, row_block=16, batch_size=8, device="cpu", **tiny
    )
    run_extract(spec)
    return path


@pytest.mark.parametrize(("change", "listed"), MISMATCHES, ids=str)
def test_another_identity_is_refused(
    made: Path, make_spec: MakeSpec, run_extract: RunExtract, files_of: FilesOf, change: dict[str, Any], listed: list[str]
) -> None:
    before = files_of(made)
    for run in (run_extract, lambda spec: prepare(spec, lambda _: None)):
        with pytest.raises(IdentityMismatch) as caught:
            run(make_spec(**change, store=made))
        message = str(caught.value)
        assert str(made) in message
        assert "--store" in message
        for part in listed:
            assert part in message
    assert files_of(made) == before


def test_another_checkpoint_is_refused(tmp_path: Path, made: Path, make_spec: MakeSpec, save_model: SaveModel) -> None:
    """The same shapes, another weight."""
    other = save_model(tmp_path / "m", {**TINY, "num_head_channels": 32, "resblock_updown": True}, _scale_first(1.01))
    with pytest.raises(IdentityMismatch) as caught:
        prepare(make_spec(store=made, **other), lambda _: None)
    assert [field for field, _, _ in caught.value.differences] == ["weights_sha256"]


def test_the_same_model_from_another_place_is_the_same(
    tmp_path: Path, made: Path, make_spec: MakeSpec, tiny: dict[str, Path], run_extract: RunExtract
) -> None:
    moved = {name: Path(shutil.copy(path, tmp_path / f"renamed{path.suffix}")) for name, path in tiny.items()}
    assert forwards(run_extract(make_spec(store=made, **moved))[1]) == 0


@pytest.mark.parametrize(
    "options",
    [
        {"seed": 9, "store_dtype": "float32", "batch_size": 4, "row_block": 32, "dtype": "bfloat16"},
        {"noise": "none", "batch_size": 5, "row_block": 8},
    ],
    ids=str,
)
def test_options_not_given_are_taken_from_the_store(
    make_spec: MakeSpec, run_extract: RunExtract, options: dict[str, Any]
) -> None:
    first, _ = run_extract(make_spec(**{**options, "limit": 16}))
    silent = dict.fromkeys(options)
    second, lines = run_extract(make_spec(**{**silent, "limit": 16, "blocks": {3: set(), 5: set(), 2: set()}}))
    assert forwards(lines) == (32 if options["row_block"] == 32 else 16)
    assert second.header == first.header
    whole, _ = run_extract(
        make_spec(**options, limit=16, blocks={2: set()}, store=Path(make_spec().store).with_name("whole.zarr"))
    )
    key = FeatureKey(2, 90, 1)
    np.testing.assert_array_equal(second.read(key, "all"), whole.read(key, "all"))


def test_the_stores_checkpoint_has_to_be_given_again(made: Path, make_spec: MakeSpec) -> None:
    with pytest.raises(ExtractError, match=r"unet\.safetensors; give --checkpoint and --model-config again"):
        prepare(make_spec(store=made, model=None), lambda _: None)


def test_the_model_of_the_store_is_announced(
    make_spec: MakeSpec, run_extract: RunExtract, tiny: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the default that a new store would have."""
    monkeypatch.setenv("DIFFSSL_CACHE", str(tiny["checkpoint"].parent))
    flags = json.loads(tiny["model_config"].read_text())
    monkeypatch.setitem(PUBLISHED, "adm16", (tiny["checkpoint"].name, flags))
    _, lines = run_extract(make_spec(model="adm16", limit=16))
    assert lines[0].startswith("model adm16, ")
    _, lines = run_extract(make_spec(model=None, limit=16))
    assert "adm16" in lines[0]
    assert BUNDLED not in lines[0]


def test_another_data_set_is_refused(
    tmp_path: Path, made: Path, make_spec: MakeSpec, run_extract: RunExtract, files_of: FilesOf, write_images: Write
) -> None:
    write_images(tmp_path / "x", [f"bridge/{i}.png" for i in range(72)])
    before = files_of(made)
    with pytest.raises(IdentityMismatch, match="data_id") as caught:
        run_extract(make_spec(store=made, data=(str(tmp_path / "x"),)))
    assert "'all'" in str(caught.value)
    with pytest.raises(IdentityMismatch, match="data_id"):
        run_extract(make_spec(store=made, data=(str(tmp_path / "x"),), timesteps=[90, 100]))
    assert files_of(made) == before


def test_a_plan_for_another_data_set_is_refused(tmp_path: Path, made: Path, make_spec: MakeSpec, write_images: Write) -> None:
    """A plan that says what is there, for images that the store has never seen, would say nothing true."""
    write_images(tmp_path / "x", [f"bridge/{i}.png" for i in range(40)])
    with pytest.raises(IdentityMismatch, match="data_id"):
        prepare(make_spec(store=made, data=(str(tmp_path / "x"),)), lambda _: None)


def test_other_labels_are_not_another_data_set(
    tmp_path: Path, make_spec: MakeSpec, run_extract: RunExtract, write_images: Write
) -> None:
    """Labels are not identity: the store's are kept, and it is said."""
    write_images(tmp_path / "x", ["1.png", "2.png", "3.png"])
    table = tmp_path / "x/labels.csv"
    table.write_text("file,label\n1.png,a\n2.png,b\n3.png,b\n")
    first, _ = run_extract(make_spec(data=(str(tmp_path / "x"),)))
    table.write_text("file,label\n1.png,b\n2.png,b\n3.png,a\n")
    second, lines = run_extract(make_spec(data=(str(tmp_path / "x"),)))
    assert "all: 2 labels differ from the store's, which are kept (labels are not identity)" in lines
    assert second.labels("all").tolist() == first.labels("all").tolist()


def test_a_condition_for_an_unconditional_model_is_refused(make_spec: MakeSpec) -> None:
    for run in (lambda spec: prepare(spec, lambda _: None), lambda spec: extract(spec, lambda _: None)):
        with pytest.raises(ExtractError, match="not class-conditional"):
            run(make_spec(condition="5"))
    assert not Path(make_spec().store).exists()


def test_conditions_are_identities(tmp_path: Path, make_spec: MakeSpec, run_extract: RunExtract, save_model: SaveModel) -> None:
    files = save_model(tmp_path / "m", {**TINY, "class_cond": True})
    values = {}
    for condition in ("none", "mean", "3"):
        store, _ = run_extract(make_spec(**files, condition=condition, limit=16, store=tmp_path / f"{condition}.zarr"))
        assert store.identity.fields["condition"] == condition
        values[condition] = store.read(KEY, "all")
    assert not np.array_equal(values["none"], values["mean"])
    assert not np.array_equal(values["none"], values["3"])
    with pytest.raises(IdentityMismatch, match="condition: store has '3', now 'mean'"):
        prepare(make_spec(**files, condition="mean", store=tmp_path / "3.zarr"), lambda _: None)
    with pytest.raises(ExtractError, match="--condition"):
        prepare(make_spec(**files, store=tmp_path / "new.zarr"), lambda _: None)


def test_unknown_settings_change_nothing(make_spec: MakeSpec) -> None:
    changes: list[dict[str, Any]] = [{"blocks": {3: set(), 10: set()}}, {"timesteps": [90, 1000]}]
    for change in changes:
        with pytest.raises(UnknownBlock):
            extract(make_spec(**change), lambda _: None)
    assert not Path(make_spec().store).exists()


# --- what is said


def test_lines_of_a_run(make_spec: MakeSpec, run_extract: RunExtract, photos: Path) -> None:
    spec = make_spec(limit=20)
    _, lines = run_extract(spec)
    assert lines[0] == f"model {spec.checkpoint}, images {photos}, store {spec.store}"
    assert lines[1].startswith("32 images, 32 forward passes")
    assert lines[1].endswith("0 of 2 units are there")
    assert re.fullmatch(
        r"32 forward passes in \d+:\d\d:\d\d \([\d.e+]+ images/s\): decode [\d.]+%, backbone [\d.]+%, write [\d.]+%", lines[2]
    )
    assert len(lines) == 3


def test_merged_pools_are_said_once(make_spec: MakeSpec, run_extract: RunExtract) -> None:
    """A pool larger than the map is the map as it is, under its true size; what is then twice is one array."""
    store, lines = run_extract(make_spec(blocks={3: set(), 5: {"full"}}, pools=(8, 16, "full"), limit=16))
    notes = [line for line in lines if "is stored as" in line]
    assert notes == ["block 3: pool 16 is stored as 8, the size of its map"]
    assert store.keys("all") == [FeatureKey(3, 90, 8), FeatureKey(5, 90, 8)]
    assert store.read(FeatureKey(3, 90, 8), "all").shape == (16, 32, 8, 8)


def test_attributes_of_an_array(made: Path) -> None:
    document = json.loads((made / "all/features/b5/p1/t90/zarr.json").read_text())
    attributes = document["attributes"]
    assert {name: attributes[name] for name in ("block_kind", "channels", "map_size", "timestep")} == {
        "block_kind": "Res+Attn+Res",
        "channels": 64,
        "map_size": 8,
        "timestep": 90,
    }
    assert round(attributes["alpha"], 4) == 0.9556
    assert round(attributes["sigma"], 4) == 0.2945
    assert attributes["log_snr"] == pytest.approx(2 * np.log(attributes["alpha"] / attributes["sigma"]))
    assert 0 < attributes["cumulative_gflop"] < 1


def test_attributes_of_clean_images(make_spec: MakeSpec, run_extract: RunExtract) -> None:
    run_extract(make_spec(noise="none", limit=8))
    attributes = json.loads((Path(make_spec().store) / "all/features/b5/p1/t90/zarr.json").read_text())["attributes"]
    assert (attributes["alpha"], attributes["sigma"], attributes["log_snr"]) == (1.0, 0.0, None)


def test_commits_name_their_command_and_versions(make_spec: MakeSpec, run_extract: RunExtract) -> None:
    run_extract(make_spec(limit=8, command="diffssl-extract --blocks 3,5"))
    (commit,) = (Path(make_spec().store) / "journal/all").iterdir()
    content = json.loads(commit.read_text())
    assert content["command"] == "diffssl-extract --blocks 3,5"
    assert content["limit"] == 8
    assert content["versions"]["torch"] == torch.__version__
    assert content["versions"]["device"].startswith("cpu")


# --- bad samples


def damaged(photos: Path, root: Path, bad: int) -> tuple[Path, list[str]]:
    """A copy of the photographs, some of which are no images any more; and which."""
    shutil.copytree(photos, root)
    names = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())[5 : 5 + 7 * bad : 7]
    for i, name in enumerate(names):
        (root / name).write_bytes([b"", b"<html>", (root / name).read_bytes()[:100]][i % 3])
    return root, names


def test_one_bad_sample_is_left_out(
    tmp_path: Path, photos: Path, made: Path, make_spec: MakeSpec, run_extract: RunExtract
) -> None:
    """Listed with its reason, NaN in every array, and nobody else's features change."""
    folder, (name,) = damaged(photos, tmp_path / "x", 1)
    store, lines = run_extract(make_spec(data=(str(folder),)))
    assert lines[-1] == f"1 of 72 images could not be decoded and are left out, such as all {name!r} (the file is empty)"
    row = store.ids("all").tolist().index(name)
    table = store.rows("all")
    assert list(table.left_out) == [row]
    assert (table.left_out[row].id, table.left_out[row].reason) == (name, "the file is empty")
    good = FeatureStore.open(made)
    for key in store.keys("all"):
        values = store.read(key, "all")
        assert np.isnan(values[row]).all()
        others = np.delete(np.arange(72), row)
        np.testing.assert_array_equal(values[others], good.read(key, "all")[others])
        x, y = store.xy(key, "all")
        assert len(x) == len(y) == 71
        assert np.isfinite(x).all()
    assert list(verify(store)) == []


def test_too_many_bad_samples(
    tmp_path: Path, photos: Path, made: Path, make_spec: MakeSpec, run_extract: RunExtract, files_of: FilesOf
) -> None:
    """The run ends with an error, and with everything else committed; running it again computes nothing."""
    folder, names = damaged(photos, tmp_path / "x", 3)
    with pytest.raises(TooManyBadSamples, match=r"3 of 72 images.*--max-bad allows 1") as caught:
        run_extract(make_spec(data=(str(folder),)))
    assert any(name in str(caught.value) for name in names)
    store = FeatureStore.open(Path(make_spec().store))
    assert store.missing(store.keys("all"), "all") == []
    assert sorted(bad.id for bad in store.rows("all").left_out.values()) == names
    others = [row for row in range(72) if row not in store.rows("all").left_out]
    np.testing.assert_array_equal(store.read(KEY, "all")[others], FeatureStore.open(made).read(KEY, "all")[others])
    before = files_of(Path(make_spec().store))
    with pytest.raises(TooManyBadSamples):
        run_extract(make_spec(data=(str(folder),)))
    with pytest.raises(TooManyBadSamples, match="allows 2"):
        run_extract(make_spec(data=(str(folder),), max_bad=2))
    _, lines = run_extract(make_spec(data=(str(folder),), max_bad=3))
    assert forwards([line for line in lines if "nothing" in line]) == 0
    assert lines[-1].startswith("3 of 72 images could not be decoded")
    assert files_of(Path(make_spec().store)) == before


def test_no_bad_sample_is_allowed(tmp_path: Path, photos: Path, make_spec: MakeSpec, run_extract: RunExtract) -> None:
    folder, _ = damaged(photos, tmp_path / "x", 1)
    with pytest.raises(TooManyBadSamples, match="--max-bad allows 0"):
        run_extract(make_spec(data=(str(folder),), max_bad=0))


def test_bad_samples_behind_the_limit_do_not_count(
    tmp_path: Path, photos: Path, make_spec: MakeSpec, run_extract: RunExtract
) -> None:
    """A row block is computed whole; whoever asked for its first half hears of its first half."""
    folder = Path(shutil.copytree(photos, tmp_path / "x"))
    ids = FeatureStore.open(run_extract(make_spec(limit=1, store=tmp_path / "ids.zarr"))[0].path).ids("all")
    for name in ids[10:16]:
        (folder / name).write_bytes(b"")
    _, lines = run_extract(make_spec(data=(str(folder),), limit=10, max_bad=0))
    assert not [line for line in lines if "could not be decoded" in line]
    with pytest.raises(TooManyBadSamples, match="2 of 12 images"):
        run_extract(make_spec(data=(str(folder),), limit=12, max_bad=0))


def test_every_image_is_bad(tmp_path: Path, make_spec: MakeSpec, run_extract: RunExtract) -> None:
    (tmp_path / "x/cat").mkdir(parents=True)
    for i in range(20):
        (tmp_path / f"x/cat/{i}.png").write_bytes(b"")
    with pytest.raises(TooManyBadSamples, match="20 of 20"):
        run_extract(make_spec(data=(str(tmp_path / "x"),)))
    assert np.isnan(FeatureStore.open(Path(make_spec().store)).read(KEY, "all")).all()


def test_a_bad_sample_of_a_class_with_an_odd_name(
    tmp_path: Path, make_spec: MakeSpec, run_extract: RunExtract, write_images: Write
) -> None:
    name = "<script>alert(1)</script>".replace("/", "\u2215") + "/ü 1.png"
    write_images(tmp_path / "x", [name, "cat/2.png"])
    (tmp_path / "x" / name).write_bytes(b"x")
    store, lines = run_extract(make_spec(data=(str(tmp_path / "x"),)))
    assert repr(name) in lines[-1]
    assert [bad.id for bad in store.rows("all").left_out.values()] == [name]


# --- when something fails


def test_an_io_error_stops_the_run_and_the_same_command_goes_on(
    tmp_path: Path,
    photos: Path,
    made: Path,
    make_spec: MakeSpec,
    run_extract: RunExtract,
    same_values: SameValues,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A file that vanishes after the listing is not a bad sample: its row block stays uncommitted."""
    monkeypatch.setattr(loading, "_RETRY_SECONDS", (0.01, 0.01))
    folder = Path(shutil.copytree(photos, tmp_path / "x"))
    name = FeatureStore.open(made).ids("all")[40]
    content = (folder / name).read_bytes()
    spec = make_spec(data=(str(folder),))

    def remove(line: str) -> None:
        if "forward passes" in line:
            (folder / name).unlink(missing_ok=True)

    with pytest.raises(ExtractError, match="cannot be read") as caught:
        extract(spec, remove)
    assert repr(name) in str(caught.value)
    store = FeatureStore.open(spec.store)
    assert 2 in store.missing([KEY], "all")
    assert store.missing([KEY], "all") == [2, 3, 4]
    (folder / name).write_bytes(content)
    store, lines = run_extract(spec)
    assert forwards(lines) == 40
    assert store.rows("all").left_out == {}
    same_values(store, FeatureStore.open(made))


def test_a_disk_that_is_too_small(make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Refused at the start, before anything is made."""
    needed = prepare(make_spec(), lambda _: None).plan.bytes
    monkeypatch.setattr(LocalStorage, "free_bytes", lambda _: needed - 1)
    with pytest.raises(StorageFull, match="free") as caught:
        extract(make_spec(), lambda _: None)
    assert str(Path(make_spec().store)) in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(LocalStorage, "free_bytes", lambda _: needed)
    extract(make_spec(), lambda _: None)


def test_a_disk_that_is_too_small_for_an_extension(
    make_spec: MakeSpec, run_extract: RunExtract, monkeypatch: pytest.MonkeyPatch, files_of: FilesOf
) -> None:
    """What is there already needs no room."""
    run_extract(make_spec(limit=16))
    before = files_of(Path(make_spec().store))
    monkeypatch.setattr(LocalStorage, "free_bytes", lambda _: 0)
    run_extract(make_spec(limit=16))
    with pytest.raises(StorageFull):
        extract(make_spec(limit=32), lambda _: None)
    assert files_of(Path(make_spec().store)) == before


def _scale_first(factor: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def scale(state: dict[str, torch.Tensor]) -> None:
        state["input_blocks.0.0.weight"] *= factor

    return scale


def test_float16_overflow_is_named(
    tmp_path: Path, photos: Path, make_spec: MakeSpec, run_extract: RunExtract, save_model: SaveModel
) -> None:
    """Block, timestep, pool and sample; float32 holds it."""
    files = save_model(tmp_path / "m", TINY, _scale_first(1e6))
    with pytest.raises(NotFinite) as caught:
        run_extract(make_spec(**files, blocks={1: {2}, 5: set()}, timesteps=[90]))
    error = caught.value
    assert error.key == FeatureKey(1, 90, 2)
    assert (photos / error.sample_id).is_file()
    for part in ("block 1, timestep 90, pool 2", repr(error.sample_id), "float16", "--store-dtype float32"):
        assert part in str(error)
    store = FeatureStore.open(Path(make_spec().store))
    assert store.missing([FeatureKey(1, 90, 2)], "all") == [0, 1, 2, 3, 4]
    big, _ = run_extract(make_spec(**files, blocks={1: {2}, 5: set()}, store=tmp_path / "big.zarr", store_dtype="float32"))
    assert np.abs(big.read(FeatureKey(1, 90, 2), "all")).max() > 65504


def test_a_model_that_makes_nan_is_named(
    tmp_path: Path, make_spec: MakeSpec, run_extract: RunExtract, save_model: SaveModel
) -> None:
    def break_block_4(state: dict[str, torch.Tensor]) -> None:
        state["input_blocks.3.0.out_layers.3.bias"][0] = float("nan")

    files = save_model(tmp_path / "m", TINY, break_block_4)
    spec = make_spec(**files, blocks={2: set(), 4: set()}, store_dtype="float32")
    with pytest.raises(NotFinite, match="block 4, timestep 90, pool 1 is NaN") as caught:
        run_extract(spec)
    assert "--store-dtype" not in str(caught.value)
    good, _ = run_extract(make_spec(**files, blocks={2: set()}, store_dtype="float32"))
    assert np.isfinite(good.read(FeatureKey(2, 90, 1), "all")).all()


def test_a_checkpoint_that_does_not_fit_makes_no_store(tmp_path: Path, make_spec: MakeSpec, tiny: dict[str, Path]) -> None:
    config = tmp_path / "other.json"
    config.write_text(json.dumps({**TINY, "num_channels": 64}))
    with pytest.raises(DiffsslError, match="does not fit"):
        extract(make_spec(checkpoint=tiny["checkpoint"], model_config=config), lambda _: None)
    assert not Path(make_spec().store).exists()


def test_images_that_are_not_there(make_spec: MakeSpec) -> None:
    with pytest.raises(DataError, match="nowhere"):
        extract(make_spec(data=("nowhere",)), lambda _: None)
    assert not Path(make_spec().store).exists()


@pytest.mark.parametrize("kind", ["a file", "a folder of something else", "another zarr group"])
def test_a_path_that_is_taken(tmp_path: Path, make_spec: MakeSpec, kind: str) -> None:
    path = tmp_path / "feats.zarr"
    if kind == "a file":
        path.write_text("my thesis")
    else:
        path.mkdir()
        name, content = ("zarr.json", '{"zarr_format": 3, "node_type": "group"}') if "zarr" in kind else ("notes", "x")
        (path / name).write_text(content)
    before = {found: found.read_bytes() for found in tmp_path.rglob("*") if found.is_file()}
    with pytest.raises(StoreError, match=r"feats\.zarr"):
        extract(make_spec(), lambda _: None)
    assert {found: found.read_bytes() for found in tmp_path.rglob("*") if found.is_file()} == before


def test_a_store_that_cannot_be_made(make_spec: MakeSpec) -> None:
    """A file where a folder of the path should be."""
    (Path(make_spec().store).parent / "thesis.txt").write_text("x")
    with pytest.raises(DiffsslError, match=r"thesis\.txt"):
        extract(make_spec(store=Path(make_spec().store).parent / "thesis.txt" / "feats.zarr"), lambda _: None)


def test_defaults_cannot_be_changed_by_a_run(make_spec: MakeSpec, run_extract: RunExtract) -> None:
    before = json.dumps([DEFAULTS, PUBLISHED], sort_keys=True)
    run_extract(make_spec(limit=8))
    assert json.dumps([DEFAULTS, PUBLISHED], sort_keys=True) == before
