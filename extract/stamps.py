"""Stamps of folders, files and objects: what changes when they do. A listing is kept with those of all it was made from."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from ..store.location import is_bucket_url, open_bucket

# Inode, bytes and time of the last change in nanoseconds; ETag and bytes of an object.
Stamp = tuple[int | str, ...]

_THREADS = 16  # hides the latency of shared storage


def local_stamp(status: os.stat_result) -> Stamp:
    """The stamp of a file or a folder. A folder's changes when something is added to it, removed or renamed."""
    return status.st_ino, status.st_size, status.st_mtime_ns


def stamps_of(places: Iterable[str]) -> dict[str, Stamp]:
    """Stamps of folders, files and objects by their paths and URLs.

    Raises:
        OSError: one is not there, or cannot be asked for; it has the path as its ``filename``.
        StoreError: the object storage does not answer.
    """
    stamps: dict[str, Stamp] = {}
    by_bucket: defaultdict[str, list[str]] = defaultdict(list)
    for place in places:
        by_bucket[split_url(place)[0] if is_bucket_url(place) else ""].append(place)
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="diffssl-list") as pool:
        for url, own in by_bucket.items():
            if url:
                bucket = open_bucket(url)
                stamps.update(zip(own, pool.map(bucket.tag, [split_url(place)[1] for place in own]), strict=True))
            else:
                stamps.update(zip(own, map(local_stamp, pool.map(os.stat, own)), strict=True))
    return stamps


def split_url(url: str) -> tuple[str, str]:
    """``s3://bucket/a/b`` -> (``s3://bucket``, ``a/b``)."""
    scheme, _, place = url.partition("://")
    bucket, _, name = place.partition("/")
    return f"{scheme}://{bucket}", name
