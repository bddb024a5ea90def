from __future__ import annotations

import pytest
from diffssl.store.advice import completing, with_thumbnails


@pytest.mark.parametrize(
    ("typed", "beyond", "named"),
    [
        ("diffssl-extract --blocks 1 --limit 4", False, "diffssl-extract --blocks 1 --limit 4 --store a/b.zarr"),
        ("diffssl-extract --limit 4 --blocks 1", True, "diffssl-extract --blocks 1 --store a/b.zarr"),
        ("diffssl-extract --limit=4 --store=a.zarr --blocks 1", True, "diffssl-extract --blocks 1 --store a/b.zarr"),
        ("diffssl-extract --store elsewhere.zarr --blocks 1", False, "diffssl-extract --blocks 1 --store a/b.zarr"),
        (None, True, "diffssl-extract, with the options that made it"),
    ],
)
def test_the_command_completes_this_store_with_these_rows(typed: str | None, beyond: bool, named: str) -> None:
    assert completing("a/b.zarr", typed, beyond_limit=beyond) == named


def test_the_default_store_is_not_named() -> None:
    assert completing("feats.zarr", "diffssl-extract --blocks 1 --store x.zarr") == "diffssl-extract --blocks 1"
    assert with_thumbnails("feats.zarr", "diffssl-extract --blocks 1") == "diffssl-extract --thumbnails 64 --blocks 1"


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        (
            "diffssl-extract --data 'my images' --limit 4",
            "diffssl-extract --thumbnails 64 --data 'my images' --limit 4 --store S",
        ),
        ("diffssl-extract --thumbnails 32 --store T --blocks 1", "diffssl-extract --thumbnails 64 --blocks 1 --store S"),
        (None, "diffssl-extract --thumbnails 64, with the options that made it"),
    ],
)
def test_thumbnails_are_added_by_the_command_that_made_the_features(typed: str | None, named: str) -> None:
    assert with_thumbnails("S", typed) == named
