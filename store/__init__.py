"""Features on disk: the store, its contract, and its care."""

from .block import Block, expand, merged_pools
from .create import add_arrays, add_split, add_thumbnails, create
from .errors import (
    ClusterError,
    CorruptStore,
    DiffsslError,
    IdentityMismatch,
    IncompleteFeatures,
    StorageFull,
    StoreError,
    StoreNotFound,
    UnknownFeatures,
    UnsupportedFormat,
)
from .feature_store import Batch, FeatureStore, common_keys
from .header import StoreHeader
from .identity import Identity, canonical_json, digest
from .key import FeatureKey, ThumbnailKey
from .rows import NO_LABEL, LeftOut, RowTable, row_order, salted_fractions
from .writer import NotFinite, UnitWriter

__all__ = [
    "NO_LABEL",
    "Batch",
    "Block",
    "ClusterError",
    "CorruptStore",
    "DiffsslError",
    "FeatureKey",
    "FeatureStore",
    "Identity",
    "IdentityMismatch",
    "IncompleteFeatures",
    "LeftOut",
    "NotFinite",
    "RowTable",
    "StorageFull",
    "StoreError",
    "StoreHeader",
    "StoreNotFound",
    "ThumbnailKey",
    "UnitWriter",
    "UnknownFeatures",
    "UnsupportedFormat",
    "add_arrays",
    "add_split",
    "add_thumbnails",
    "canonical_json",
    "common_keys",
    "create",
    "digest",
    "expand",
    "merged_pools",
    "row_order",
    "salted_fractions",
]
