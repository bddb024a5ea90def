"""What a fit said about each test row, compactly: hits and misses in the result line, probabilities in a file of their own."""

from __future__ import annotations

import base64
import binascii
import os
import uuid
import zlib
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ProbeError

FOLDER = "probabilities"
NO_CLASS = -1  # the prediction for a row with a score that is not a number
_MOST_SHORT = 65_535
_AGAIN = "remove that line and run the probe again"


def pack_hits(hits: NDArray[np.bool_]) -> str:
    """(n,) hits as text of n / 6 characters: base64 of the bits, eight rows a byte, the first row highest."""
    if hits.ndim != 1 or hits.dtype != np.bool_:
        raise ValueError(f"hits are (n,) of bool, got {hits.shape} of {hits.dtype}")
    return base64.b64encode(np.packbits(hits).tobytes()).decode()


def unpack_hits(text: str, n: int) -> NDArray[np.bool_]:
    """(n,) hits of ``pack_hits``. Raises ``ProbeError`` if the text is not of n rows."""
    try:
        raw = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ProbeError(f"hits {text[:20]!r}… are not base64 ({error}); {_AGAIN}") from error
    if len(raw) != -(-n // 8):
        raise ProbeError(f"hits of {n} rows have {-(-n // 8)} bytes, got {len(raw)}; {_AGAIN}")
    return np.unpackbits(np.frombuffer(raw, dtype=np.uint8), count=n).astype(bool)


def pack_missed(predicted: NDArray[np.int64], classes: int) -> str:
    """(m,) predicted classes of the missed rows, in row order, as text: base64 of zlib of little-endian numbers.

    They have 16 bits, or 32 where there are more than 65,535 classes; the highest number of these bits is ``NO_CLASS``.

    Args:
        predicted: in [0, classes), or ``NO_CLASS``.
        classes: how many classes there are.
    """
    if predicted.ndim != 1 or predicted.dtype.kind != "i":
        raise ValueError(f"predicted classes are (m,) of integers, got {predicted.shape} of {predicted.dtype}")
    if ((predicted < NO_CLASS) | (predicted >= classes)).any():
        raise ValueError(f"of {classes} classes, got numbers from {predicted.min()} to {predicted.max()}")
    width = "<u2" if classes <= _MOST_SHORT else "<u4"
    return base64.b64encode(zlib.compress(predicted.astype(width).tobytes(), 9)).decode()


def unpack_missed(text: str, m: int, classes: int) -> NDArray[np.int64]:
    """(m,) predicted classes of ``pack_missed``. Raises ``ProbeError`` if the text is not of m rows and so many classes."""
    width = 2 if classes <= _MOST_SHORT else 4
    inflate = zlib.decompressobj()
    try:
        raw = inflate.decompress(base64.b64decode(text, validate=True), m * width + 1)  # never more than is asked for
    except (binascii.Error, zlib.error) as error:
        raise ProbeError(f"missed {text[:20]!r}… cannot be unpacked ({error}); {_AGAIN}") from error
    if len(raw) != m * width or not inflate.eof:
        raise ProbeError(f"predictions of {m} missed rows have {m * width} bytes, the text has other ones; {_AGAIN}")
    values = np.frombuffer(raw, dtype=f"<u{width}").astype(np.int64)
    values[values == 2 ** (8 * width) - 1] = NO_CLASS
    if (values >= classes).any():
        raise ProbeError(f"predictions of {classes} classes have numbers up to {values.max()}; {_AGAIN}")
    return values


def test_rows_digest(ids: Iterable[str], labels: NDArray[Any]) -> str:
    """Digest of test rows, in row order: results with the same one are about the same rows with the same labels.

    It knows nothing of the store, so that backbones, noise seeds and draws can be compared row by row.

    Args:
        ids: of the n rows.
        labels: (n,) class numbers, or (n, T) targets.
    """
    names = list(ids)
    if len(names) != len(labels):
        raise ValueError(f"every row has an id and labels, got {len(names)} ids and labels {labels.shape}")
    total = blake2b(f"{labels.shape[1:]} ".encode(), digest_size=16)
    for name in names:
        raw = name.encode()
        total.update(len(raw).to_bytes(4, "little") + raw)
    # One width for all, so that int32 and int64 labels are the same.
    total.update(np.ascontiguousarray(labels, dtype="<f8" if labels.dtype.kind == "f" else "<i8").tobytes())
    return total.hexdigest()


# pytest collects what is named so.
test_rows_digest.__test__ = False  # type: ignore[attr-defined]


def write_probabilities(folder: Path, key: str, probabilities: NDArray[np.floating]) -> Path:
    """Keep (n, K) probabilities of the test rows, in row order, as float16 in ``FOLDER/probabilities/KEY.npy``.

    The file appears whole: it is written under another name. A half-precision probability is off by at most 2^-12 of 1.

    Args:
        folder: of the results.
        key: of the fit's result line.
        probabilities: in [0, 1], or NaN in rows without any. Raises ``ValueError`` for others: scores are not probabilities.
    """
    if probabilities.ndim != 2 or ((probabilities < 0) | (probabilities > 1 + 1e-6)).any():
        raise ValueError(f"probabilities are (n, K) in [0, 1], got {probabilities.shape} up to {np.nanmax(probabilities)}")
    path = folder / FOLDER / f"{key}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{key}-{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            np.save(file, probabilities.astype(np.float16), allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def read_probabilities(folder: Path, key: str) -> NDArray[np.float16]:
    """(n, K) probabilities of a fit. Raises ``ProbeError`` if they were not kept or cannot be read."""
    path = folder / FOLDER / f"{key}.npy"
    try:
        values = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise ProbeError(f"{path}: the probabilities of this fit were not kept") from error
    except (ValueError, EOFError, OSError) as error:
        raise ProbeError(f"{path}: cannot be read ({error}); remove it and the fit's line, and run the probe again") from error
    if values.dtype != np.float16 or values.ndim != 2:
        raise ProbeError(f"{path}: has {values.shape} of {values.dtype}, expected (n, K) of float16")
    return np.asarray(values)
