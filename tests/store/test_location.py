"""Where stores are: folders, URLs, and what is neither."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from diffssl.store import FeatureStore, StoreError
from diffssl.store.cli import main
from diffssl.store.location import is_url, local_path, open_storage
from diffssl.store.object_storage import ObjectStorage
from diffssl.store.storage import LocalStorage

Run = Callable[..., int]


@pytest.mark.parametrize("path", ["feats.zarr", "/data/a b/feats.zarr", Path("a/feats.zarr"), "s3", "s3:feats.zarr", "./s3:/x"])
def test_folders(path: Path | str) -> None:
    assert not is_url(path)
    storage = open_storage(path)
    assert isinstance(storage, LocalStorage)
    assert storage.root == Path(path)


@pytest.mark.parametrize("url", ["s3://bucket/a/feats.zarr", "gs://bucket/feats.zarr", "az://container/feats.zarr"])
def test_urls(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "mine")
    assert is_url(url)
    storage = open_storage(url)
    assert isinstance(storage, ObjectStorage)
    assert str(storage) == url


@pytest.mark.parametrize("path", [Path("s3://bucket/feats.zarr"), "s3:/bucket/feats.zarr", Path("gs://b"), Path("az://c/d")])
def test_a_url_that_lost_a_slash_is_not_taken_for_a_folder(path: Path | str) -> None:
    proper = str(path).replace(":/", "://")
    with pytest.raises(StoreError, match=f"a URL has two slashes: {proper} \\(in Python a string, since a Path collapses them"):
        FeatureStore.open(path)


@pytest.mark.parametrize("url", ["http://host/feats.zarr", "file:///data/feats.zarr", "S3://bucket/feats.zarr", "://x"])
def test_other_urls_are_refused_and_the_known_ones_listed(url: str) -> None:
    with pytest.raises(StoreError, match=f"^{url}: stores are read from and written to folders and s3://, gs://, az://; copy"):
        open_storage(url)


def test_without_obstore_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("diffssl.store.object_storage", "diffssl.store.connection", "obstore.exceptions", "obstore.store"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(StoreError, match=r"^s3://b/feats.zarr: object storage needs .* obstore: pip install 'diffssl\[s3\]'$"):
        open_storage("s3://b/feats.zarr")
    assert isinstance(open_storage("feats.zarr"), LocalStorage)


def test_a_store_in_a_folder_needs_no_obstore(small: FeatureStore) -> None:
    script = (
        "import sys; from diffssl.store import FeatureStore; "
        f"store = FeatureStore.open({small.path!r}); store.rows('train'); sys.exit('obstore' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_the_command_line_says_so_in_one_line(program: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert program(main, "info", "s3:/bucket/feats.zarr") == 1
    assert capsys.readouterr().err.startswith("Error: s3:/bucket/feats.zarr: a URL has two slashes: s3://bucket/feats.zarr")


@pytest.mark.parametrize(
    ("store", "path"),
    [
        ("feats.zarr", "feats.results"),
        (Path("a/feats.zarr"), "a/feats.results"),
        ("a/feats.zarr/", "a/feats.results"),
        ("a/x.y", "a/x.y.results"),
        ("s3://bucket/deep/feats.zarr", "feats.results"),
        ("s3://bucket/deep/feats.zarr/", "feats.results"),
        ("az://bucket", "bucket.results"),
    ],
)
def test_local_path(store: Path | str, path: str) -> None:
    assert local_path(store, ".results") == Path(path)
