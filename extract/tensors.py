"""Digest of the tensors in safetensors files, without torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from .errors import CheckpointMismatch

_BLOCK = 1 << 22
_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32"}


def tensors_sha256(files: Mapping[str, Iterable[Path]]) -> str:
    """SHA-256 of weights: of every tensor, sorted by name, name, dtype, shape and bytes.

    The definition is that of :func:`~diffssl.extract.weights.state_sha256`, so how tensors are spread over files, and what
    else those say of themselves, is not in it.

    Args:
        files: part of the model, such as ``unet`` -> its ``.safetensors`` files. A tensor is ``unet.its.name``.

    Raises:
        CheckpointMismatch: a file is damaged.
    """
    found: dict[str, tuple[Path, int, Mapping[str, Any]]] = {}
    for part, paths in files.items():
        for path in paths:
            start, header = _header(path)
            found |= {f"{part}.{name}": (path, start, entry) for name, entry in header.items() if name != "__metadata__"}
    checksum = sha256()
    for name, (path, start, entry) in sorted(found.items()):
        dtype = _NAMES.get(entry["dtype"], entry["dtype"])
        checksum.update(f"{name}\0{dtype}\0{','.join(map(str, entry['shape']))}\0".encode())
        begin, end = entry["data_offsets"]
        with path.open("rb") as file:
            file.seek(start + begin)
            while begin < end:
                block = file.read(min(_BLOCK, end - begin))
                if not block:
                    raise CheckpointMismatch(f"{path}: ends in the middle of the tensor {name}; download or copy it again")
                checksum.update(block)
                begin += len(block)
    return checksum.hexdigest()


def _header(path: Path) -> tuple[int, dict[str, Any]]:
    """(where the tensors begin, name -> dtype, shape and data_offsets)."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > path.stat().st_size:
                raise ValueError(f"a header of {length} bytes in a file of {path.stat().st_size}")
            header: dict[str, Any] = json.loads(file.read(length))
    except (OSError, ValueError) as error:
        raise CheckpointMismatch(f"{path}: cannot be read as safetensors ({error})") from error
    return 8 + length, header
