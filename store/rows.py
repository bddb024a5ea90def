"""The rows of a split: their order, their digest, and the salted hashes that choose hold-outs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice

import numpy as np
from numpy.typing import NDArray

_ORDER = b"diffssl-order"
_AT_A_TIME = 1 << 12  # ids; a call of the hash for each took twice as long
NO_LABEL = -1


@dataclass(frozen=True)
class LeftOut:
    """A sample that could not be decoded: its features are NaN and readers leave it out."""

    id: str
    reason: str


@dataclass(frozen=True)
class RowTable:
    """The rows of one split, in the order of every array of the split.

    Attributes:
        ids: (n,) sample ids, as ``class/file``.
        labels: (n,) int32 index into the store's classes, -1 for none.
        left_out: row number -> what could not be decoded, and why.
    """

    ids: NDArray[np.object_]
    labels: NDArray[np.int32]
    left_out: Mapping[int, LeftOut] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)


def row_order(ids: Sequence[str]) -> list[int]:
    """Permutation that puts ``ids`` in row order: by blake2b of the id, whatever order they were listed in.

    Reading in row order is therefore shuffled reading, any prefix is a random sample of the split, and two stores
    of the same samples are aligned.
    """
    digests = b"".join([blake2b(name.encode(), digest_size=16, person=_ORDER).digest() for name in ids])
    words = np.frombuffer(digests, dtype=">u8").reshape(-1, 2)
    order: list[int] = np.lexsort((words[:, 1], words[:, 0])).tolist()
    return order


def ids_digest(ids: Iterable[str]) -> str:
    """``data_id`` of a split: digest of its ids in row order."""
    total = blake2b(digest_size=16)
    names = iter(ids)
    while raw := [name.encode() for name in islice(names, _AT_A_TIME)]:
        total.update(b"".join([len(one).to_bytes(4, "little") + one for one in raw]))
    return total.hexdigest()


def salted_fractions(ids: Iterable[str], salt: str) -> NDArray[np.float64]:
    """(n,) pseudo-random numbers in [0, 1), each a function of (salt, id) alone.

    Hold-outs chosen by them do not change when a store grows. ``salt`` has at most 16 bytes.
    """
    person = salt.encode()
    words = [blake2b(name.encode(), digest_size=8, person=person).digest() for name in ids]
    numbers = np.frombuffer(b"".join(words), dtype="<u8")
    # 53 bits, so that the largest number does not round up to 1.
    fractions: NDArray[np.float64] = (numbers >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return fractions
