"""Reading pieces of objects anywhere in a bucket, whoever wrote them; a store's own files are in ``object_storage.py``."""

from __future__ import annotations

import obstore
from obstore.exceptions import BaseError

from .connection import checked, connect, translated

Tag = tuple[str, int]  # what changes with the content of an object: ETag, bytes


class Bucket:
    """One bucket, with the credentials of the environment.

    Args:
        url: of the bucket, or of anything in it.
    """

    def __init__(self, url: str) -> None:
        scheme, _, place = checked(url).partition("://")
        self.url = f"{scheme}://{place.partition('/')[0]}"
        self._store = connect(self.url)

    def tag(self, name: str) -> Tag:
        """The tag of an object. Raises ``FileNotFoundError``."""
        with translated(self.url, name):
            found = obstore.head(self._store, name)
        return found["e_tag"] or str(found["last_modified"]), found["size"]

    def read(self, name: str, offset: int, size: int) -> tuple[bytes, Tag]:
        """At most ``size`` bytes of an object, fewer at its end, and the tag of the object they are of.

        Raises:
            FileNotFoundError: there is no such object.
            StoreError: the storage does not give it.
        """
        if not size:
            return b"", self.tag(name)
        with translated(self.url, name):
            try:
                answer = obstore.get(self._store, name, options={"range": (offset, offset + size)})
                content = answer.bytes().to_bytes()
            except BaseError:
                # Services refuse a range wholly beyond the end, each in words of its own.
                tag = self.tag(name)
                if offset < tag[1]:
                    raise
                return b"", tag
        return content, (answer.meta["e_tag"] or str(answer.meta["last_modified"]), answer.meta["size"])

    def names(self, folder: str) -> list[str]:
        """Full names of the objects in ``folder`` (not below it), sorted; none if there is no folder."""
        with translated(self.url, folder):
            found = obstore.list_with_delimiter(self._store, folder or None)["objects"]
        return sorted(one["path"] for one in found)
