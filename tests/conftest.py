"""Shared fixtures: stores of synthetic features, made the way extraction makes them, and an S3 service on loopback."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from diffssl.store import (
    NO_LABEL,
    Block,
    FeatureKey,
    FeatureStore,
    Identity,
    LeftOut,
    StoreHeader,
    ThumbnailKey,
    UnitWriter,
    add_arrays,
    add_split,
    add_thumbnails,
    create,
    row_order,
)
from numpy.typing import NDArray

# (setting, split, (n,) labels) -> (n, C, p, p)
Features = Callable[[FeatureKey, str, NDArray[np.int32]], NDArray[Any]]
Relabel = Callable[[str, NDArray[np.int32]], NDArray[np.int32]]

COMMAND = "diffssl-extract --blocks 1 --timesteps 10"


class S3:
    """moto's S3 server on loopback, behind a gate where it can be told to misbehave.

    Attributes:
        ignores_conditions: like services that do not know If-None-Match.
        busy: answer so many requests with 503 before the next is served.
        requests: method and path of all requests that came.
    """

    def __init__(self) -> None:
        self.ignores_conditions = False
        self.busy = 0
        self.requests: list[str] = []
        self._lock = threading.Lock()
        self._buckets = 0

    def start(self) -> None:
        """Start the server on a free port."""
        import boto3
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self._server.start()
        inside: Any = self._server._server
        self._app, inside.app = inside.app, self
        self.endpoint = "http://{}:{}".format(*self._server.get_host_and_port())
        self._client = boto3.client(
            "s3", endpoint_url=self.endpoint, region_name="us-east-1", aws_access_key_id="id", aws_secret_access_key="key"
        )

    def stop(self) -> None:
        """Stop the server."""
        self._client.close()
        self._server.stop()
        self._server._server.server_close()  # type: ignore[union-attr]

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        """One request. moto checks the condition of a put and then writes; real services do both in one step."""
        with self._lock:
            self.requests.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
            if self.busy:
                self.busy -= 1
                start_response("503 Slow Down", [("Content-Length", "0")])
                return []
            if self.ignores_conditions:
                environ.pop("HTTP_IF_NONE_MATCH", None)
            answer: Iterable[bytes] = self._app(environ, start_response)
            return answer

    def bucket(self) -> str:
        """URL of a new bucket."""
        self._buckets += 1
        self._client.create_bucket(Bucket=f"bucket-{self._buckets}")
        return f"s3://bucket-{self._buckets}"

    def put(self, url: str, content: bytes) -> None:
        """Write an object behind the store's back."""
        self._client.put_object(**_place(url), Body=content)

    def delete(self, url: str) -> None:
        """Remove an object behind the store's back."""
        self._client.delete_object(**_place(url))

    def objects(self, url: str) -> dict[str, bytes]:
        """Name -> content of all objects below a URL."""
        place = _place(f"{url}/")
        listed = self._client.get_paginator("list_objects_v2").paginate(Bucket=place["Bucket"], Prefix=place["Key"])
        names = [found["Key"].removeprefix(place["Key"]) for page in listed for found in page.get("Contents", ())]
        return {name: self._client.get_object(**_place(f"{url}/{name}"))["Body"].read() for name in names}

    def upload(self, folder: Path, url: str) -> str:
        """Copy all files of a folder below a URL, and give it back."""
        for path in folder.rglob("*"):
            if path.is_file():
                self.put(f"{url}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        return url


def _place(url: str) -> dict[str, str]:
    bucket, _, key = url.removeprefix("s3://").partition("/")
    return {"Bucket": bucket, "Key": key}


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3]:
    """The one server of all tests."""
    server = S3()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def s3(s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """An S3 service that works, and the environment that leads to it."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "key",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": s3_server.endpoint,
        "AWS_ALLOW_HTTP": "true",
    }.items():
        monkeypatch.setenv(name, value)
    yield s3_server
    s3_server.ignores_conditions, s3_server.busy = False, 0


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """A function that runs the function of a console script with arguments and gives the exit code."""
    handler = signal.getsignal(signal.SIGTERM)

    def run(main: Callable[[], None], *arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", [main.__module__, *arguments])
        try:
            main()
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    yield run
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., FeatureStore]:
    """A function that makes a store, or extends the one of the same name.

    Whether a store survives a power failure is asked elsewhere, so nothing is synced.
    """

    def make(
        rows: Mapping[str, int | Sequence[str]],
        keys: Sequence[FeatureKey] = (FeatureKey(1, 10, 1),),
        *,
        name: str = "feats.zarr",
        classes: int = 4,
        sizes: Sequence[int] = (4, 4, 2),
        channels: int = 8,
        separation: float = 2.0,
        features: Features | None = None,
        relabel: Relabel | None = None,
        dtype: str = "float16",
        row_block: int = 64,
        limit: int | None = None,
        only_blocks: Collection[int] | None = None,
        left_out: Mapping[FeatureKey, Collection[str]] | None = None,
        seed: int = 0,
        identity: Mapping[str, Any] | None = None,
    ) -> FeatureStore:
        """Make a store.

        Args:
            rows: split -> number of rows, spread over ``classes``, or the ids themselves, as ``class/file``; an id
                without a folder has no label.
            keys: settings.
            name: of the store's folder.
            classes: of counted rows.
            sizes: side of the map of each block, from block 1 on.
            channels: of every block.
            separation: distance of the class means from the origin; the noise has unit deviation in every direction.
            features: instead of Gaussian classes.
            relabel: from (split, labels by folder) to the labels that are stored; features go by the folder.
            dtype: of the stored features.
            row_block: rows of a row block.
            limit: extract the first so many rows only.
            only_blocks: commit these row blocks only.
            left_out: setting -> ids that could not be decoded.
            seed: of the features, and part of the identity.
            identity: fields in place of those.
        """
        ids = {split: _ids(split, given, classes) for split, given in rows.items()}
        names = sorted({_folder(one) for own in ids.values() for one in own} - {""})
        blocks = [Block(i, "Res", channels, size, 0.1 * i, 0.2 * i) for i, size in enumerate(sizes, start=1)]
        own_identity = Identity(identity or {"model": "synthetic", "seed": seed})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", lambda _: None)
            header = StoreHeader(own_identity, names, row_block, 32, dtype, "contiguous", blocks, "synthetic")
            store = create(tmp_path / name, header)
            for split, own in ids.items():
                labels = np.array([names.index(_folder(one)) if _folder(one) else NO_LABEL for one in own], dtype=np.int32)
                stored = labels if relabel is None else relabel(split, labels)
                add_split(store, split, np.array(own, dtype=object), stored)
                add_arrays(store, split, keys, {key: {} for key in keys})
                make_features = features or _gaussian(store, separation, seed)
                values = {key: make_features(key, split, labels).astype(dtype) for key in keys}
                committed = range(-(-min(limit or len(own), len(own)) // row_block))
                for block in committed if only_blocks is None else only_blocks:
                    _commit(store, split, block, values, left_out or {}, limit)
        return FeatureStore.open(tmp_path / name)

    return make


@pytest.fixture(scope="session")
def add_pictures() -> Callable[..., NDArray[np.uint8]]:
    """A function that adds thumbnails to a store, and returns those of the split: (rows, side, side, 3) uint8."""

    def add(
        path: Path | str,
        split: str,
        side: int = 8,
        *,
        row_blocks: Collection[int] | None = None,
        left_out: Collection[int] = (),
        limit: int | None = None,
    ) -> NDArray[np.uint8]:
        store = FeatureStore.open(path)
        key, n, size = ThumbnailKey(side), store.n_rows(split), store.header.row_block
        rng = np.random.default_rng([side, crc32(split.encode())])
        pictures: NDArray[np.uint8] = rng.integers(1, 256, (n, side, side, 3), dtype=np.uint8)
        ids = store.ids(split).tolist()
        add_thumbnails(store, split, key)
        for block in range(-(-n // size)) if row_blocks is None else row_blocks:
            rows = range(block * size, min((block + 1) * size, n))
            writer = UnitWriter(store, split, block, [key], ids[rows.start : rows.stop])
            bad = {row: LeftOut(ids[row], "cut short") for row in left_out if row in rows}
            writer.write({key: pictures[rows.start : rows.stop]}, bad)
            writer.commit(limit, f"{COMMAND} --thumbnails {side}", {})
        pictures[list(left_out)] = 0
        return pictures

    return add


def _folder(one: str) -> str:
    return one.rpartition("/")[0]


def _ids(split: str, given: int | Sequence[str], classes: int) -> list[str]:
    ids = [f"c{i % classes:02d}/{split}-{i:05d}.png" for i in range(given)] if isinstance(given, int) else list(given)
    return [ids[i] for i in row_order(ids)]


def _gaussian(store: FeatureStore, separation: float, seed: int) -> Features:
    """Gaussian classes, the same means in all splits."""

    def features(key: FeatureKey, split: str, labels: NDArray[np.int32]) -> NDArray[Any]:
        shape = store.layout(key, split).row_shape
        means = np.random.default_rng([seed, crc32(key.path.encode())]).normal(size=(len(store.classes) + 1, *shape))
        noise = np.random.default_rng([seed, crc32(f"{key.path} {split}".encode())]).normal(size=(len(labels), *shape))
        values: NDArray[Any] = separation * means[labels] / np.sqrt(np.prod(shape)) + noise
        return values

    return features


def _commit(
    store: FeatureStore,
    split: str,
    block: int,
    values: Mapping[FeatureKey, NDArray[Any]],
    left_out: Mapping[FeatureKey, Collection[str]],
    limit: int | None,
) -> None:
    """Commit a row block of every setting; a commit leaves samples out of all its settings, so those that differ are apart."""
    size = store.header.row_block
    ids = store.ids(split)[block * size : (block + 1) * size]
    units: dict[tuple[int | None, tuple[str, ...]], list[FeatureKey]] = {}
    for key in values:
        units.setdefault((key.timestep, tuple(sorted(left_out.get(key, ())))), []).append(key)
    for (_, bad), keys in units.items():
        unreadable = {block * size + i: LeftOut(one, "cut short") for i, one in enumerate(ids) if one in bad}
        writer = UnitWriter(store, split, block, keys, list(ids))
        writer.write({key: np.ascontiguousarray(values[key][block * size :][: len(ids)]) for key in keys}, unreadable)
        writer.commit(limit, COMMAND, {})
