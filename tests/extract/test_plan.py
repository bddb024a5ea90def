from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from diffssl.extract import ExtractSpec
from diffssl.extract.job import prepare
from diffssl.extract.plan import Plan, describe_plan, human_tflop, make_plan, still_missing
from diffssl.store import Block, FeatureKey, FeatureStore, Identity, StoreHeader

MakeSpec = Callable[..., ExtractSpec]
RunExtract = Callable[[ExtractSpec], tuple[FeatureStore, list[str]]]
FilesOf = Callable[[Path], dict[str, str]]

BLOCKS = [Block(1, "Conv", 32, 16, 1.0, 0.1), Block(2, "Res", 64, 8, 3.0, 0.3), Block(3, "Res", 64, 4, 7.0, 0.7)]
HEADER = StoreHeader(Identity({"a": 1}), [], 64, 16, "float16", "contiguous", BLOCKS, "model")


def keys(*settings: tuple[int, int, int] | tuple[int, int, int, int]) -> list[FeatureKey]:
    return [FeatureKey(*setting) for setting in settings]


def plan_of(spec: ExtractSpec) -> Plan:
    return prepare(spec, lambda _: None).plan


# --- what it counts


def test_everything_of_a_new_store() -> None:
    wanted = keys((1, 10, 1), (3, 10, 2), (1, 90, 1))
    plan = make_plan(HEADER, {"train": 130, "test": 20}, wanted, None, None)
    assert [(work.split, work.row_block, work.rows) for work in plan.work] == [
        ("train", 0, range(0, 64)),
        ("train", 1, range(64, 128)),
        ("train", 2, range(128, 130)),
        ("test", 0, range(0, 20)),
    ]
    assert all(dict(work.keys) == {10: wanted[:2], 90: wanted[2:]} for work in plan.work)
    assert plan.images == 150
    assert plan.forwards == 2 * 150
    assert (plan.done, plan.units) == (0, 8)
    assert plan.arrays == 2 * 3


def test_cost_is_that_of_full_batches_to_the_deepest_block() -> None:
    """2 rows of a last row block cost a batch of 16; timestep 10 goes to block 3, timestep 90 only to block 1."""
    wanted = keys((1, 10, 1), (3, 10, 2), (1, 90, 1))
    plan = make_plan(HEADER, {"train": 66}, wanted, None, None)
    assert plan.gflop == pytest.approx((64 + 16) * 7.0 + (64 + 16) * 1.0)


def test_every_draw_is_a_forward_pass() -> None:
    plan = make_plan(HEADER, {"train": 64}, keys((1, 10, 1, 0), (1, 10, 1, 1), (3, 10, 1, 1)), None, None)
    assert plan.forwards == 2 * 64
    assert plan.gflop == pytest.approx(64 * 1.0 + 64 * 7.0)
    assert plan.units == 1


@pytest.mark.parametrize(("limit", "rows"), [(1, 64), (64, 64), (65, 128), (129, 130), (10_000, 130), (None, 130)])
def test_a_limit_is_whole_row_blocks(limit: int | None, rows: int) -> None:
    plan = make_plan(HEADER, {"train": 130}, keys((1, 10, 1)), limit, None)
    assert plan.images == rows
    assert plan.units == len(plan.work) == math.ceil(rows / 64)


def test_bytes_and_files_of_large_maps() -> None:
    """64 rows of 64 x 8 x 8 float16 are 512 KiB: one shard, one chunk. Row blocks of 2048 rows of 4 MB are many shards."""
    plan = make_plan(HEADER, {"train": 64}, keys((2, 10, 8)), None, None)
    assert plan.files == 1 + 1 + 1  # shard, commit, document
    assert 64 * 64 * 64 * 2 < plan.bytes < 64 * 64 * 64 * 2 + 10_000
    large = replace(HEADER, row_block=2048, blocks=[Block(1, "Conv", 512, 64, 1.0, 1.0)])
    plan = make_plan(large, {"train": 2048}, keys((1, 10, 64)), None, None)
    assert plan.files > 64
    assert plan.bytes == pytest.approx(2048 * 512 * 64 * 64 * 2, rel=0.001)


def test_in_words() -> None:
    wanted = keys((1, 10, 1), (2, 90, 1))
    plan = make_plan(HEADER, {"train": 66}, wanted, None, None)
    lines = describe_plan(plan, HEADER, wanted, 12_300_000_000)
    assert lines == [
        "settings    2 a split, deepest block 2: 3 GFLOP an image, 30.0% of the full forward pass",
        "there       0 of 4 units (row block of 64 rows x timestep)",
        "to compute  66 images, 132 forward passes in batches of 16, 0.32 TFLOP",
        f"to write    2 arrays, {lines[3].split('arrays, ')[1].split(' in ')[0]} in 10 files (12.3 GB free)",
    ]


@pytest.mark.parametrize(("free", "words"), [(None, "a bucket"), (0, "0 B free, too little"), (10**6, "1.0 MB free")])
def test_the_space_that_is_left_in_words(free: int | None, words: str) -> None:
    wanted = keys((1, 10, 1))
    plan = make_plan(HEADER, {"train": 66}, wanted, None, None)
    assert describe_plan(plan, HEADER, wanted, free)[-1].endswith(f" files ({words})")


@pytest.mark.parametrize(
    ("gflop", "words"), [(0, "0 TFLOP"), (320, "0.32 TFLOP"), (999_000, "999 TFLOP"), (3.680007e9, "3,680,007 TFLOP")]
)
def test_work_in_words(gflop: float, words: str) -> None:
    assert human_tflop(gflop) == words


# --- against what runs do


GRIDS: list[dict[str, Any]] = [
    {"blocks": {2: {1, 4}, 5: set()}, "timesteps": [10, 90], "pools": (1, 2)},
    {"blocks": {1: {"full"}, 4: {8, 16}}, "timesteps": [0], "draws": 2, "store_dtype": "float32"},
    {"blocks": {3: set()}, "timesteps": [5, 7, 9], "limit": 20},
]


def counted(store: Path, files_of: FilesOf) -> tuple[list[Path], int, int]:
    """Shards, commits and array documents on disk."""
    paths = [store / name for name in files_of(store)]
    shards = [path for path in paths if path.name.startswith("c.")]
    commits = sum(path.parent.parent.name == "journal" for path in paths)
    arrays = sum(path.name == "zarr.json" and path.parent.name.startswith("t") for path in paths if "features" in path.parts)
    return shards, commits, arrays


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_run_writes_what_was_planned(
    make_spec: MakeSpec, run_extract: RunExtract, files_of: FilesOf, grid: dict[str, Any]
) -> None:
    spec = make_spec(**grid)
    plan = plan_of(spec)
    store, lines = run_extract(spec)
    shards, commits, arrays = counted(Path(spec.store), files_of)
    assert plan.arrays == arrays
    assert plan.files == len(shards) + commits + arrays
    documents = plan.bytes - sum(path.stat().st_size for path in shards)
    assert documents % (commits + arrays) == 0  # the rest is so much a document, and about what they take
    small = [path for path in Path(spec.store).rglob("*") if path.is_file() and path.parent.parent.name == "journal"]
    assert documents / (commits + arrays) >= max(path.stat().st_size for path in small) / 2
    assert commits == plan.units
    rows = len(store.ids("all")) if spec.limit is None else 32
    assert plan.images == rows
    assert plan.forwards == rows * len(spec.timesteps) * spec.draws
    assert any(line.startswith(f"{plan.forwards} forward passes in ") for line in lines)
    after = plan_of(spec)
    assert (after.work, after.forwards, after.gflop, after.bytes, after.files) == ([], 0, 0, 0, 0)
    assert (after.done, after.units) == (plan.units, plan.units)


def test_an_extension_is_what_is_missing(make_spec: MakeSpec, run_extract: RunExtract, files_of: FilesOf) -> None:
    spec = make_spec(timesteps=[10, 90], limit=32)
    run_extract(spec)
    more = make_spec(timesteps=[10, 90, 200], blocks={3: set(), 5: set(), 2: set()}, limit=48)
    plan = plan_of(more)
    before = set(files_of(Path(spec.store)))
    # Two old row blocks lack block 2 of two timesteps, and all of the third; a new one lacks everything.
    assert [{t: [key.block for key in keys] for t, keys in work.keys.items()} for work in plan.work] == [
        {10: [2], 90: [2], 200: [2, 3, 5]},
        {10: [2], 90: [2], 200: [2, 3, 5]},
        {10: [2, 3, 5], 90: [2, 3, 5], 200: [2, 3, 5]},
    ]
    assert (plan.done, plan.units, plan.forwards) == (0, 9, 9 * 16)
    run_extract(more)
    new = set(files_of(Path(spec.store))) - before
    shards = [name for name in new if "/c." in name]
    assert len(shards) == 2 * (1 + 1 + 3) + 9
    assert plan.files - plan.arrays == len(shards) + sum(name.startswith("journal/all/") for name in new)
    assert sum((Path(spec.store) / name).stat().st_size for name in shards) < plan.bytes


def test_a_plan_changes_nothing(tmp_path: Path, make_spec: MakeSpec, run_extract: RunExtract) -> None:
    plan_of(make_spec())
    assert not (tmp_path / "feats.zarr").exists()
    run_extract(make_spec(limit=16))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    plan_of(make_spec(timesteps=[90, 100]))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_what_others_commit_meanwhile_is_not_missing(make_spec: MakeSpec, run_extract: RunExtract) -> None:
    run_extract(make_spec(limit=16))
    job = prepare(make_spec(timesteps=[90, 95]), lambda _: None)
    assert job.store is not None
    first, second = job.plan.work[:2]
    assert list(first.keys) == [95]
    run_extract(make_spec(timesteps=[95], limit=16))
    assert still_missing(job.store, first).keys == {}
    assert still_missing(job.store, second) == second
    run_extract(make_spec(timesteps=[90]))
    assert list(still_missing(job.store, second).keys) == [95]
