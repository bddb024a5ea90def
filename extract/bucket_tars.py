"""Tars in a bucket, by patterns of URLs or by the prefix that they lie below."""

from __future__ import annotations

from fnmatch import fnmatchcase

from ..store.location import open_bucket
from .errors import DataError
from .listing import SPLITS
from .patterns import expand, has_wildcard
from .stamps import split_url

_SHOWN = 3


def matching_objects(pattern: str) -> list[str]:
    """URLs of the objects that a pattern names, sorted; braces anywhere, ``*``, ``?`` and ``[…]`` in the last part only.

    Raises:
        DataError: a part of the pattern matches nothing, or means nothing.
        StoreError: the object storage does not answer.
    """
    names = expand(pattern)
    there: dict[str, list[str]] = {}  # folder -> what is in it
    for folder in {name.rpartition("/")[0] for name in names}:
        if has_wildcard(folder):
            raise DataError(f"{pattern}: in a bucket, only the last part of a name may have *, ? or [; give a pattern a folder")
        there[folder] = objects_in(folder)
    urls: set[str] = set()
    missing: list[str] = []
    for name in names:
        own = there[name.rpartition("/")[0]]
        matches = [url for url in own if url == name or (has_wildcard(name) and fnmatchcase(url, name))]
        urls.update(matches)
        missing += [] if matches else [name]
    if missing:
        raise DataError(
            f"{pattern}: there is no object for {len(missing)} of its {len(names)} names, such as {', '.join(missing[:_SHOWN])}"
        )
    return sorted(urls)


def split_tars(prefix: str) -> dict[str, str]:
    """Split -> URL of ``train.tar``, ``val.tar`` and ``test.tar`` below a prefix.

    Raises:
        DataError: there are none.
        StoreError: the object storage does not answer.
    """
    there = objects_in(prefix.rstrip("/"))
    tars = {name: url for name in sorted(SPLITS) if (url := f"{prefix.rstrip('/')}/{name}.tar") in there}
    if not tars:
        raise DataError(
            f"{prefix}: there is no train.tar, val.tar or test.tar; from a bucket, --data takes a .tar, a pattern of them "
            "(train-{000..146}.tar), or the prefix of these three"
        )
    return tars


def objects_in(folder: str) -> list[str]:
    """URLs of the objects in a folder of a bucket, not below it. Raises ``StoreError``."""
    bucket, name = split_url(folder)
    return [f"{bucket}/{one}" for one in open_bucket(folder).names(name)]
