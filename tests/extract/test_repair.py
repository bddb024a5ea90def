"""A real extraction whose store is damaged and repaired: the same command computes what is lacking, and nothing else."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from diffssl.extract import ExtractSpec
from diffssl.store import CorruptStore, FeatureStore
from diffssl.store.hdf5 import export_hdf5
from diffssl.store.hdf5_import import import_hdf5
from diffssl.store.repair import repair
from diffssl.store.verify import verify

RunExtract = Callable[[ExtractSpec], tuple[FeatureStore, list[str]]]
SameValues = Callable[[FeatureStore, FeatureStore], None]
Damaging = Callable[[Path], object]

ROWS = 24  # images that are extracted of 72, in row blocks of eight
SHARD = "all/features/b8/p2/t90/c.1.0.0.0"


def flip(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def lose_split(root: Path) -> None:
    for name in ("all/zarr.json", "all/rows/id/zarr.json"):
        (root / name).unlink()


def commit(root: Path) -> Path:
    (file,) = (root / "journal/all").glob("000002-t10-*")
    return file


# What is done to the store, and how many forward passes it costs.
DAMAGES: dict[str, tuple[Damaging, int]] = {
    "chunk byte flipped": (lambda root: flip(root / SHARD), 8),
    "shard cut": (lambda root: cut(root / SHARD), 8),
    "shard removed": (lambda root: (root / SHARD).unlink(), 8),
    "commit removed": (lambda root: commit(root).unlink(), 8),
    "commit cut": (lambda root: cut(commit(root)), 8),
    "array document removed": (lambda root: (root / "all/features/b8/p2/t90/zarr.json").unlink(), 0),
    "array document cut": (lambda root: cut(root / "all/features/b8/p2/t90/zarr.json"), 0),
    "group document removed": (lambda root: (root / "all/features/b8/zarr.json").unlink(), 0),
    "labels cut": (lambda root: cut(root / "all/rows/label/c/0"), 0),
    "ids cut": (lambda root: cut(root / "all/rows/id/c/0"), 0),
    "split document removed": (lambda root: (root / "all/zarr.json").unlink(), 0),
    "split document and ids removed": (lose_split, 48),
}


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> ExtractSpec:
    """The bundled model at its first blocks."""
    return ExtractSpec(
        {2: set(), 8: {1, 2}},
        [10, 90],
        data=(str(photos),),
        store=tmp_path_factory.mktemp("whole") / "feats.zarr",
        limit=ROWS,
        row_block=8,
        batch_size=8,
        device="cpu",
        command="diffssl-extract --blocks 2,8@1,8@2 --timesteps 10,90",
    )


@pytest.fixture(scope="module")
def whole(spec: ExtractSpec, run_extract: RunExtract) -> FeatureStore:
    """The undamaged store. Tests leave it as it is."""
    return run_extract(spec)[0]


def forwards(lines: list[str]) -> int:
    found = [re.match(r"(\d+) forward passes in ", line) for line in lines]
    return sum(int(match[1]) for match in found if match)


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_repair_and_the_same_command(
    tmp_path: Path, spec: ExtractSpec, whole: FeatureStore, run_extract: RunExtract, same_values: SameValues, name: str
) -> None:
    path = tmp_path / "feats.zarr"
    shutil.copytree(whole.path, path)
    again = ExtractSpec(**{**vars(spec), "store": path})
    damage, cost = DAMAGES[name]
    damage(path)
    done = repair(str(path), say=lambda _: None)
    assert done.commands == ({spec.command} if done.forgotten else set())
    store, lines = run_extract(again)
    assert forwards(lines) == cost
    assert list(verify(store)) == []
    same_values(store, whole)
    documents = [file.relative_to(path) for file in path.rglob("zarr.json")]
    assert len(documents) == len(list(Path(whole.path).rglob("zarr.json")))
    assert "nothing to do" in run_extract(again)[1][-1]


def test_everything_at_once(
    tmp_path: Path, spec: ExtractSpec, whole: FeatureStore, run_extract: RunExtract, same_values: SameValues
) -> None:
    path = tmp_path / "feats.zarr"
    shutil.copytree(whole.path, path)
    for name in ("chunk byte flipped", "commit cut", "array document removed", "group document removed", "labels cut"):
        DAMAGES[name][0](path)
    with pytest.raises(CorruptStore, match="diffssl-store repair"):
        FeatureStore.open(path)
    repair(str(path), say=lambda _: None)
    store, lines = run_extract(ExtractSpec(**{**vars(spec), "store": path}))
    assert forwards(lines) == 16
    assert list(verify(store)) == []
    same_values(store, whole)


def test_missing_documents_are_work(tmp_path: Path, spec: ExtractSpec, whole: FeatureStore, run_extract: RunExtract) -> None:
    """Without a repair too: nothing is in the way."""
    path = tmp_path / "feats.zarr"
    shutil.copytree(whole.path, path)
    names = ["all/features/b8/zarr.json", "all/features/b8/p2/t90/zarr.json"]
    for name in names:
        (path / name).unlink()
    _, lines = run_extract(ExtractSpec(**{**vars(spec), "store": path}))
    assert f"2 documents were missing and are there again, such as {names[0]}" in lines
    assert not [line for line in lines if "nothing to do" in line]
    for name in names:
        assert (path / name).read_bytes() == (Path(whole.path) / name).read_bytes()


def test_replaced_images_are_due_again(
    tmp_path: Path, photos: Path, spec: ExtractSpec, whole: FeatureStore, run_extract: RunExtract, same_values: SameValues
) -> None:
    data, path = tmp_path / "photos", tmp_path / "feats.zarr"
    shutil.copytree(photos, data)
    broken = data / str(whole.ids("all")[9])
    image = broken.read_bytes()
    broken.write_bytes(b"no image")
    again = ExtractSpec(**{**vars(spec), "store": path, "data": (str(data),)})
    store, _ = run_extract(again)
    assert store.rows("all").left_out.keys() == {9}
    broken.write_bytes(image)
    assert forwards(run_extract(again)[1]) == 0
    assert repair(str(path), bad=True, say=lambda _: None).forgotten == 6
    store, lines = run_extract(again)
    assert forwards(lines) == 16
    assert list(verify(store)) == []
    same_values(store, whole)


def test_an_imported_store_is_extended(
    tmp_path: Path, spec: ExtractSpec, whole: FeatureStore, run_extract: RunExtract, same_values: SameValues
) -> None:
    """An archive of one timestep becomes a store again, which the same command completes."""
    keys = {"all": [key for key in whole.keys("all") if key.timestep == 10]}
    export_hdf5(whole, tmp_path / "t10.h5", keys)
    import_hdf5(tmp_path / "t10.h5", tmp_path / "feats.zarr")
    store, lines = run_extract(ExtractSpec(**{**vars(spec), "store": tmp_path / "feats.zarr"}))
    assert forwards(lines) == ROWS
    assert list(verify(store)) == []
    same_values(store, whole)
