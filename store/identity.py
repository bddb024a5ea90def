"""What a feature vector means: the fields that two runs must share to write into one store."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any


def canonical_json(value: object) -> bytes:
    """Encode as JSON in one way only: sorted keys, no spaces, UTF-8. NaN and infinity are refused."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def digest(value: object, size: int = 16) -> str:
    """Hexadecimal blake2b digest of ``size`` bytes over the canonical JSON of ``value``."""
    return blake2b(canonical_json(value), digest_size=size).hexdigest()


@dataclass(frozen=True)
class Identity:
    """Weights, model configuration, conditioning, preprocessing, noise and compute dtype of a store.

    Attributes:
        fields: JSON values by name; which names there are is the writer's business (``extract`` for a U-Net).
    """

    fields: Mapping[str, Any]

    def __post_init__(self) -> None:
        # Through JSON once, so that an identity read back from disk equals the one that was written.
        object.__setattr__(self, "fields", json.loads(canonical_json(dict(self.fields))))

    @property
    def feature_id(self) -> str:
        """Digest over all fields: equal means that feature vectors of two stores can be compared and mixed."""
        return digest(self.fields)

    def differences(self, other: Identity) -> list[tuple[str, Any, Any]]:
        """(field, here, there) for every field that differs; nested mappings are named ``outer.inner``."""
        ours, theirs = _flat(self.fields), _flat(other.fields)
        names = sorted(ours.keys() | theirs.keys())

        def same(name: str) -> bool:
            # By their JSON, as the digest goes by it: 1 and true differ, and null and a field that is not there.
            return name in ours and name in theirs and canonical_json(ours[name]) == canonical_json(theirs[name])

        return [(name, ours.get(name), theirs.get(name)) for name in names if not same(name)]


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat
