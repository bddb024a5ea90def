"""Where a store is: a folder, or the URL of a prefix in a bucket. A URL is a string; ``Path`` collapses its slashes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from .contract import Storage
from .errors import StoreError
from .storage import LocalStorage

if TYPE_CHECKING:
    from .bucket import Bucket

SCHEMES = ("s3", "gs", "az")

_COLLAPSED = re.compile(rf"({'|'.join(SCHEMES)}):/(?!/)")


def is_url(path: Path | str) -> bool:
    """Whether a store's path is a URL."""
    return "://" in str(path)


def open_storage(path: Path | str) -> Storage:
    """The storage of a store, whether there is a store or not.

    Args:
        path: a folder, or a string ``s3://bucket/prefix``, ``gs://bucket/prefix`` or ``az://container/prefix``.

    Raises:
        StoreError: the URL means nothing here, or obstore is not installed.
    """
    text = str(path)
    if _COLLAPSED.match(text):
        scheme, _, rest = text.partition(":/")
        raise StoreError(path, f"a URL has two slashes: {scheme}://{rest} (in Python a string, since a Path collapses them)")
    if not is_url(path):
        return LocalStorage(path)
    if text.partition("://")[0] not in SCHEMES:
        known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise StoreError(path, f"stores are read from and written to folders and {known}; copy it to one of them")
    try:
        from .object_storage import ObjectStorage
    except ModuleNotFoundError as error:
        raise _without_obstore(text, error) from error
    return ObjectStorage(text)


def is_bucket_url(text: str) -> bool:
    """Whether a text names something in a bucket."""
    return text.startswith(tuple(f"{scheme}://" for scheme in SCHEMES))


def open_bucket(url: str) -> Bucket:
    """The bucket of an object, to read from. Raises ``StoreError``: the URL means nothing, or obstore is not installed."""
    try:
        from .bucket import Bucket
    except ModuleNotFoundError as error:
        raise _without_obstore(url, error) from error
    return Bucket(url)


def _without_obstore(url: str, error: ModuleNotFoundError) -> Exception:
    if error.name != "obstore":
        return error
    return StoreError(url, "object storage needs the package obstore: pip install 'diffssl[s3]'")


def local_path(store: Path | str, suffix: str) -> Path:
    """Path on the local disk named after a store, ``.zarr`` replaced by ``suffix``.

    It is beside a store in a folder, and in the current folder for the last part of a URL.
    """
    path = Path(str(store).rstrip("/").rpartition("/")[2]) if is_url(store) else Path(store)
    return path.with_name(path.name.removesuffix(".zarr") + suffix)
