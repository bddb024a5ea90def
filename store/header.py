"""What is fixed when a store is created: the attributes of its root."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .block import Block
from .contract import Storage
from .errors import CorruptStore, StoreNotFound, UnsupportedFormat
from .identity import Identity
from .key import ArrayKey, FeatureKey, ThumbnailKey
from .layout import FORMAT, JOURNAL, ROOT, ArrayLayout, store_dtype

RESTORE = "restore it from a copy, or forget it with 'diffssl-store repair' and run the extraction again"
RESTORE_ROOT = "restore it from a copy; it is the one file that 'diffssl-store repair' cannot do without"


@dataclass(frozen=True)
class StoreHeader:
    """What is fixed when a store is created: the root's attributes.

    Attributes:
        identity: what a feature vector means.
        classes: class names of all splits, sorted; a label is an index into them.
        row_block: rows of a row block.
        batch_size: images of a forward pass; another size changes float16 values by a few ulp.
        dtype: of stored features, ``float16`` or ``float32``.
        memory_format: of activations in the forward pass.
        blocks: of the backbone.
        model: name of the backbone, for people.
        versions: versions and device of the creator; not compared.
    """

    identity: Identity
    classes: Sequence[str]
    row_block: int
    batch_size: int
    dtype: str
    memory_format: str
    blocks: Sequence[Block]
    model: str
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The root's attributes."""
        plain = ("row_block", "batch_size", "dtype", "memory_format", "model")
        return {
            "format": FORMAT,
            "feature_id": self.identity.feature_id,
            "identity": dict(self.identity.fields),
            "classes": list(self.classes),
            "blocks": [block.to_json() for block in self.blocks],
            "versions": dict(self.versions),
            **{name: getattr(self, name) for name in plain},
        }

    def layout(self, key: ArrayKey, rows: int) -> ArrayLayout:
        """Shape, dtype and chunking of an array in a split of ``rows`` rows. The block of a setting must be known."""
        if isinstance(key, ThumbnailKey):
            return ArrayLayout(rows, (key.side, key.side, 3), np.dtype(np.uint8), self.row_block)
        return ArrayLayout(rows, self.row_shape(self.blocks, key), store_dtype(self.dtype), self.row_block)

    @staticmethod
    def row_shape(blocks: Sequence[Block], key: FeatureKey) -> tuple[int, int, int]:
        """(C, p, p) of one row of a setting. The block must be known."""
        block = next(block for block in blocks if block.number == key.block)
        return (block.channels, 1, 1) if isinstance(key.pool, str) else (block.channels, key.pool, key.pool)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> StoreHeader:
        """Invert :meth:`to_json`; unknown attributes are ignored."""
        names = ("classes", "row_block", "batch_size", "dtype", "memory_format", "model", "versions")
        blocks = [Block.from_json(block) for block in value["blocks"]]
        store_dtype(value["dtype"])
        identity = Identity(value["identity"])
        if identity.feature_id != value["feature_id"]:
            raise ValueError(f"the identity has the feature_id {identity.feature_id}, not {value['feature_id']}")
        return cls(identity=identity, blocks=blocks, **{name: value[name] for name in names})


def read_header(storage: Storage) -> StoreHeader:
    """Read the root of a store. Raises ``StoreNotFound``, ``UnsupportedFormat`` or ``CorruptStore``."""
    try:
        content = storage.read(ROOT)
    except (FileNotFoundError, NotADirectoryError):
        if storage.exists(f"{JOURNAL}/{ROOT}"):
            raise CorruptStore(str(storage), f"{ROOT} is missing, but a store was here; {RESTORE_ROOT}") from None
        raise StoreNotFound(str(storage), "there is no feature store here; diffssl-extract makes one") from None
    attributes = _own(str(storage), ROOT, _parse(str(storage), ROOT, content))
    if attributes is None:
        raise StoreNotFound(str(storage), "this is a Zarr group, but not a feature store; choose another --store")
    try:
        return parse_header(str(storage), attributes)
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptStore(str(storage), f"{ROOT} is damaged ({error!r}); {RESTORE_ROOT}") from error


def parse_header(where: str, attributes: Mapping[str, Any]) -> StoreHeader:
    """The header in attributes of a root that is at ``where``.

    Raises:
        UnsupportedFormat: a newer diffssl wrote it.
        KeyError, TypeError, ValueError: it is damaged.
    """
    if attributes.get("format") != FORMAT:
        raise UnsupportedFormat(
            where, f"the store has format {attributes.get('format')}, this diffssl reads {FORMAT}; upgrade diffssl"
        )
    return StoreHeader.from_json(attributes)


def own_attributes(storage: Storage, name: str) -> dict[str, Any] | None:
    """What diffssl keeps in the attributes of a group; None if it is somebody else's. Raises ``CorruptStore``."""
    return _own(str(storage), name, read_document(storage, name))


def read_document(storage: Storage, name: str) -> dict[str, Any]:
    """A zarr.json as it is. Raises ``CorruptStore``."""
    try:
        content = storage.read(name)
    except FileNotFoundError:
        raise CorruptStore(str(storage), f"{name} is missing; {_advice(name)}") from None
    return _parse(str(storage), name, content)


def _own(where: str, name: str, document: Mapping[str, Any]) -> dict[str, Any] | None:
    attributes = document.get("attributes", {})
    own: dict[str, Any] | None = attributes.get("diffssl") if isinstance(attributes, dict) else None
    if own is not None and not isinstance(own, dict):
        raise CorruptStore(where, f"{name} is damaged; {_advice(name)}")
    return own


def _parse(where: str, name: str, content: bytes) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(content)
    except ValueError as error:
        raise CorruptStore(where, f"{name} is not JSON ({error}); {_advice(name)}") from error
    if not isinstance(document, dict):
        raise CorruptStore(where, f"{name} is no zarr document; {_advice(name)}")
    return document


def _advice(name: str) -> str:
    return RESTORE_ROOT if name == ROOT else RESTORE
