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

_PAIRS_TOGETHER = 1 << 17  # a megabyte in float64
_FRESH = np.random.Philox(key=0).state
_as_json = json.JSONEncoder(ensure_ascii=False).encode
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
    # So many samples at a time that calls are long: threads wait for each other's interpreter between calls.
    together = max(1, min(len(sample_ids), _PAIRS_TOGETHER // max(1, pairs)))
    words = np.empty((2, together, pairs), dtype=np.uint64)
    philox = np.random.Philox(key=0)
    for first in range(0, len(sample_ids), together):
        out = noise[first : first + together]
        drawn = words[:, : len(out)]
        for i, sample_id in enumerate(sample_ids[first : first + together]):
            philox.state = _state(seed, sample_id, timestep, draw, crop)
            drawn[:, i] = philox.random_raw(2 * pairs).reshape(2, pairs)
        drawn >>= np.uint64(11)
        out[:, :pairs], sines = _box_muller(*np.multiply(drawn, 2.0**-53))
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


def _box_muller(radius: NDArray[np.float64], turns: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pairs of normals of pairs of multiples of 2^-53 in [0, 1), all of one shape, which are overwritten.

    Cosine and sine by exact reduction to a quarter of a turn and Taylor's series: sums and products alone, which are the
    same on every processor. numpy's own take twice as long where there is no AVX-512.
    """
    radius += 2.0**-53  # in (0, 1], so that its logarithm is finite
    np.log(radius, out=radius)
    radius *= -2.0
    np.sqrt(radius, out=radius)
    halves = np.multiply(turns, 2.0)
    halves += 0.5
    np.floor(halves, out=halves)  # 0, 1 or 2; exact, as is the difference to the nearest of them
    halves *= 0.5
    turns -= halves  # in [-1/4, 1/4)
    halves -= 0.5
    np.square(halves, out=halves)
    halves *= 8
    halves -= 1  # the sign: -1 for an odd number of half turns
    radius *= halves
    square = np.square(turns, out=halves)
    cosine = _polynomial(square, _COSINE)
    cosine *= radius
    radius *= turns
    radius *= _polynomial(square, _SINE)
    return cosine, radius


def _polynomial(x: NDArray[np.float64], coefficients: Sequence[float]) -> NDArray[np.float64]:
    """Horner's scheme, the highest coefficient first."""
    highest, *others = coefficients
    found = np.full_like(x, highest)
    for coefficient in others:
        found *= x
        found += coefficient
    return found
