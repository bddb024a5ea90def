from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from diffssl.store import FeatureKey, FeatureStore, StoreHeader
from diffssl.store.describe import describe, human_bytes, progress_table

Build = Callable[..., FeatureStore]


def test_describe_a_complete_store(small: FeatureStore) -> None:
    size, files = small.storage.usage()
    assert describe(small) == [
        f"store       {small.path}",
        "model       tiny",
        f"feature_id  {small.feature_id}",
        "  model: {'channels': 32, 'layers': 2}",
        "  noise: {'scheme': 1, 'seed': 0}",
        "  weights: 5f1d",
        "created by  diffssl 0.1.0",
        "classes     2: cat, dog",
        "layout      float16, row blocks of 4, batches of 2",
        f"on disk     {size / 1000:.1f} kB in {files} files, 10 commits",
        f"split test: 6 rows, data_id {small.data_id('test')}",
        "  blocks 1 x timesteps 10 x pools 1",
        "  blocks 2 x timesteps 10,90 x pools 2",
        f"split train: 10 rows, data_id {small.data_id('train')}",
        "  blocks 1 x timesteps 10 x pools 1",
        "  blocks 2 x timesteps 10,90 x pools 2",
    ]


def test_describe_says_what_was_left_out(tmp_path: Path, build: Build) -> None:
    store = build(tmp_path / "feats.zarr", splits={"train": 10}, left_out={("train", 10): [5], ("train", 90): [5, 9]})
    lines = describe(store)
    assert lines[-3:] == [
        "  2 samples could not be decoded and are left out:",
        f"    {store.ids('train')[5]}: cannot identify image file",
        f"    {store.ids('train')[9]}: cannot identify image file",
    ]


def test_describe_shortens_long_lists(tmp_path: Path, header: StoreHeader, build: Build) -> None:
    many = replace(header, classes=[f"c{i:02d}" for i in range(12)])
    lines = describe(build(tmp_path / "feats.zarr", header=many, splits={"all": 14}, left_out={("all", 10): list(range(12))}))
    assert "classes     12: c00, c01, c02, c03, c04, c05, c06, c07, c08, c09, …" in lines
    assert "  12 samples could not be decoded and are left out:" in lines
    assert lines[-1] == "    and 2 more"
    assert len([line for line in lines if line.endswith("cannot identify image file")]) == 10


def test_describe_groups_blocks_with_the_same_settings(tmp_path: Path, build: Build) -> None:
    keys = [FeatureKey(block, timestep, 1, draw) for block in (1, 2) for timestep in (10, 90) for draw in (0, 1)]
    lines = describe(build(tmp_path / "feats.zarr", splits={"all": 4}, keys=keys))
    assert lines[-1] == "  blocks 1,2 x timesteps 10,90 x pools 1 x draws 0,1"


class TestProgress:
    def test_complete(self, small: FeatureStore) -> None:
        assert progress_table(small) == (
            [
                "test: 6 rows",
                "  b1/p1/t10                6 of 6 rows  100.0%  complete",
                "  b2/p2/t10                6 of 6 rows  100.0%  complete",
                "  b2/p2/t90                6 of 6 rows  100.0%  complete",
                "train: 10 rows",
                "  b1/p1/t10               10 of 10 rows  100.0%  complete",
                "  b2/p2/t10               10 of 10 rows  100.0%  complete",
                "  b2/p2/t90               10 of 10 rows  100.0%  complete",
            ],
            True,
        )

    def test_incomplete(self, tmp_path: Path, build: Build) -> None:
        store = build(tmp_path / "feats.zarr", splits={"train": 10}, row_blocks=[1, 2], keys=[FeatureKey(2, 90, 2)])
        assert progress_table(store) == (
            ["train: 10 rows", "  b2/p2/t90                6 of 10 rows   60.0%  1 row blocks missing"],
            False,
        )

    def test_one_incomplete_array_is_enough(self, tmp_path: Path, build: Build, keys: list[FeatureKey]) -> None:
        build(tmp_path / "feats.zarr", splits={"train": 10}, keys=keys[:1], row_blocks=[0])
        lines, complete = progress_table(build(tmp_path / "feats.zarr", splits={"train": 10}, keys=keys[1:]))
        assert [line.split()[-1] for line in lines[1:]] == ["missing", "complete", "complete"]
        assert not complete

    def test_a_pilot_is_complete_to_its_limit(self, tmp_path: Path, build: Build) -> None:
        store = build(tmp_path / "feats.zarr", splits={"train": 10}, limit=5, keys=[FeatureKey(2, 90, 2)])
        assert progress_table(store) == (
            ["train: 10 rows", "  b2/p2/t90                8 of 10 rows   80.0%  complete to --limit 5"],
            True,
        )

    def test_half_a_pilot_is_not(self, tmp_path: Path, build: Build) -> None:
        store = build(tmp_path / "feats.zarr", splits={"train": 10}, limit=5, row_blocks=[1], keys=[FeatureKey(2, 90, 2)])
        lines, complete = progress_table(store)
        assert lines[1] == "  b2/p2/t90                4 of 10 rows   40.0%  1 row blocks missing to --limit 5"
        assert not complete

    def test_arrays_that_have_no_commit_yet_are_not_complete(
        self, tmp_path: Path, build: Build, keys: list[FeatureKey]
    ) -> None:
        """A run creates all its arrays first and may be killed before it comes to the second timestep."""
        build(tmp_path / "feats.zarr", splits={"train": 10}, keys=keys, row_blocks=[])
        store = build(tmp_path / "feats.zarr", splits={"train": 10}, keys=keys[:2])
        lines, complete = progress_table(store)
        assert not complete
        assert lines[-1].split()[:4] == ["b2/p2/t90", "0", "of", "10"]

    def test_a_store_that_was_only_created_is_not_complete(self, tmp_path: Path, build: Build) -> None:
        _, complete = progress_table(build(tmp_path / "feats.zarr", row_blocks=[]))
        assert not complete


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1550, "1.6 kB"),
        (10**6, "1.0 MB"),
        (2500000000.0, "2.5 GB"),
        (4000000000000.0, "4.0 TB"),
        (5000000000000000.0, "5000.0 TB"),
    ],
)
def test_human_bytes(number: float, text: str) -> None:
    assert human_bytes(number) == text
