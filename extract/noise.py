"""Gaussian noise that is a pure function of (seed, sample, timestep, draw, crop).

Scheme 1, fixed by golden values in the tests: the 128-bit key of a Philox-4x64 generator is the blake2b digest of the
arguments; its raw 64-bit words, taken in pairs, become pairs of normals by Box-Muller in float64, cast to float32.
So the noise of an image does not depend on the subset, the order, the batch size, the worker or the device, nor on how
numpy's own distributions are implemented.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

SCHEME = 1

_PAIRS_TOGETHER = 1 << 14  # half a second-level cache
_FRESH = np.random.Philox(key=0).state
_as_json = json.JSONEncoder(ensure_ascii=False).encode
_QUARTER = 1 << 51  # of a turn of 2^53
# Of cos(2 pi r) and sin(2 pi r) / r in powers of r^2, the highest first: to 2e-17 at a quarter of a turn.
_COSINE = [(-1) ** n * math.tau ** (2 * n) / math.factorial(2 * n) for n in range(10, -1, -1)]
_SINE = [(-1) ** n * math.tau ** (2 * n + 1) / math.factorial(2 * n + 1) for n in range(10, -1, -1)]


def noise_for(
    seed: int, sample_id: str, timestep: int, shape: Sequence[int], draw: int = 0, crop: int = 0
) -> NDArray[np.float32]:
    """Standard normal noise of one sample at one timestep.

    Args:
        seed: of the store.
        sample_id: as in the store's ``rows/id``.
        timestep: 0-based diffusion timestep; every timestep has noise of its own, as in the papers' code.
        shape: of the noised sample, such as (3, 256, 256).
        draw: number of the noise draw.
        crop: number of the crop.

    Returns:
        float32 array of the given shape.
    """
    noise: NDArray[np.float32] = noise_batch(seed, [sample_id], timestep, shape, draw, crop)[0]
    return noise


def noise_batch(
    seed: int, sample_ids: Sequence[str], timestep: int, shape: Sequence[int], draw: int = 0, crop: int = 0
) -> NDArray[np.float32]:
    """:func:`noise_for` of several samples, (n, *shape) float32."""
    size = math.prod(shape)
    pairs = -(-size // 2)
    noise = np.empty((len(sample_ids), size), dtype=np.float32)
    # A few samples at a time: calls long enough that threads do not wait for each other's, arrays that stay in a cache.
    together = max(1, min(len(sample_ids), _PAIRS_TOGETHER // max(1, pairs)))
    words = np.empty((together, 2 * pairs), dtype=np.uint64)
    buffers = np.empty((4, together, pairs))
    philox = np.random.Philox(key=0)
    for first in range(0, len(sample_ids), together):
        out = noise[first : first + together]
        drawn = words[: len(out)]
        for row, sample_id in zip(drawn, sample_ids[first : first + together], strict=True):
            philox.state = _state(seed, sample_id, timestep, draw, crop)
            row[:] = philox.random_raw(2 * pairs)
        drawn >>= np.uint64(11)
        out[:, :pairs], sines = _box_muller(drawn, buffers[:, : len(out)])
        out[:, pairs:] = sines[:, : size - pairs]
    return noise.reshape(len(sample_ids), *shape)


def _state(seed: int, sample_id: str, timestep: int, draw: int, crop: int) -> Any:
    """State of a Philox generator that is keyed by a hash of everything that the noise of a sample depends on.

    A new state in place of a new generator, which takes as long as the numbers themselves.
    """
    message = f"[{SCHEME}, {int(seed)}, {_as_json(sample_id)}, {int(timestep)}, {int(draw)}, {int(crop)}]"
    key = blake2b(message.encode(), digest_size=16, person=b"diffssl-noise").digest()
    counter = _FRESH["state"]["counter"]
    return {**_FRESH, "state": {"counter": counter, "key": np.frombuffer(key, dtype="<u8").astype(np.uint64)}}


def _box_muller(words: NDArray[np.uint64], buffers: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Normals of (n, 2 * pairs) numbers of 53 bits, as (n, pairs) and (n, pairs), in two of the (4, n, pairs) buffers.

    Cosine and sine by exact reduction to a quarter of a turn and Taylor's series: sums and products alone, which are the
    same on every processor. numpy's own take twice as long where there is no AVX-512.
    """
    radius, rest, square, cosine = buffers
    pairs = radius.shape[1]
    # The first half in (0, 1], so that its logarithm is finite; the second half is an angle in [0, 1) turns.
    np.add(words[:, :pairs], 1.0, out=radius)
    radius *= 2.0**-53
    np.log(radius, out=radius)
    radius *= -2.0
    np.sqrt(radius, out=radius)
    turns = words[:, pairs:].view(np.int64)
    half_turns = (turns + _QUARTER) >> 52
    radius *= 1 - 2 * (half_turns & 1)
    half_turns <<= 52
    np.subtract(turns, half_turns, out=turns)
    np.multiply(turns, 2.0**-53, out=rest)  # in [-1/4, 1/4) turns
    np.multiply(rest, rest, out=square)
    _polynomial(square, _COSINE, cosine)
    cosine *= radius
    radius *= rest
    _polynomial(square, _SINE, rest)
    radius *= rest
    return cosine, radius


def _polynomial(x: NDArray[np.float64], coefficients: Sequence[float], out: NDArray[np.float64]) -> None:
    """Horner's scheme, the highest coefficient first."""
    highest, *others = coefficients
    out[...] = highest
    for coefficient in others:
        out *= x
        out += coefficient
