"""Sources, storages and ways of working, in all pairs: the same images have the same features, however they got there.

From clean images, since the noise of an image depends on its id, and ids on the source.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffssl.extract import ExtractSpec, extract
from diffssl.extract.cluster import compute_on_cluster
from diffssl.extract.job import prepare
from diffssl.store import FeatureKey, FeatureStore
from diffssl.store.cluster import local_cluster
from diffssl.store.verify import verify
from distributed import Client

MakeSpec = Callable[..., ExtractSpec]
Sources = dict[str, str]

SOURCES = ("folder", "tar", "webdataset", "manifest", "parquet")
STORAGES = ("folder", "bucket")
WAYS = ("alone", "parts", "workers")
KEY = FeatureKey(3, 90, 1)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with local_cluster(2, 0) as client:
        yield client


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, write_images: Callable[..., None]) -> Sources:
    """Twelve images of two classes, kept in every way."""
    root = tmp_path_factory.mktemp("sources")
    names = [f"{'roof' if i % 2 else 'bridge'}/{i:02d}.png" for i in range(12)]
    write_images(root / "folder", names)
    contents = {name: (root / "folder" / name).read_bytes() for name in names}
    _write_tar(root / "images.tar", contents)
    for shard in range(2):
        own: dict[str, bytes] = {}
        for name in names[shard::2]:
            label, _, file = name.partition("/")
            own |= {file: contents[name], file.replace(".png", ".cls"): label.encode()}
        _write_tar(root / f"shard-{shard}.tar", own)
    lines = [json.dumps({"path": f"folder/{name}", "label": name.split("/")[0]}) for name in names]
    (root / "list.jsonl").write_text("\n".join(lines))
    found = {
        "folder": str(root / "folder"),
        "tar": str(root / "images.tar"),
        "webdataset": str(root / "shard-{0..1}.tar"),
        "manifest": str(root / "list.jsonl"),
    }
    return found | {"parquet": f"hf:{_write_parquet(root / 'images.parquet', contents)}"}


def _write_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def _write_parquet(path: Path, contents: dict[str, bytes]) -> Path:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        return path
    images = [{"bytes": content, "path": name} for name, content in contents.items()]
    pq.write_table(pa.table({"image": images, "label": [name.split("/")[0] for name in contents]}), path)
    return path


def by_image(store: FeatureStore) -> dict[str, tuple[str, bytes]]:
    """Number of the image -> class and features."""
    values = store.read(KEY, "all")
    rows = zip(store.ids("all"), store.labels("all"), values, strict=True)
    return {Path(name).stem: (store.classes[label], np.ascontiguousarray(row).tobytes()) for name, label, row in rows}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("source", SOURCES)
def test_the_same_images_have_the_same_features(
    source: str, way: str, sources: Sources, make_spec: MakeSpec, client: Client, s3: Any, tmp_path: Path
) -> None:
    if source == "parquet":
        pytest.importorskip("pyarrow")
    storage = STORAGES[(SOURCES.index(source) + WAYS.index(way)) % 2]  # with each source and each way, both
    options: dict[str, Any] = {"blocks": {3: set()}, "noise": "none", "row_block": 4, "batch_size": 4}
    path = str(tmp_path / "feats.zarr") if storage == "folder" else f"{s3.bucket()}/feats.zarr"
    spec = make_spec(**options, data=(sources[source],), store=path)
    if way == "alone":
        extract(spec, lambda _: None)
    elif way == "parts":
        for i in (1, 0):
            extract(make_spec(**options, data=(sources[source],), store=path, part=(i, 2)), lambda _: None)
    else:
        values = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        client.run(lambda: os.environ.update(values))  # the workers were started before the service
        compute_on_cluster(prepare(spec, lambda _: None), client, lambda _: None, lambda _: None)
    store = FeatureStore.open(path)
    assert list(verify(store)) == []
    reference = extract(make_spec(**options, data=(sources["folder"],), store=tmp_path / "reference.zarr"), lambda _: None)
    assert by_image(store) == by_image(reference)
    assert len(by_image(store)) == 12
