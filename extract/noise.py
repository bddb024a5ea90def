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

import numpy as np
from numpy.typing import NDArray

SCHEME = 1

_PAIRS_TOGETHER = 1 << 14  # half a second-level cache


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
    together = max(1, _PAIRS_TOGETHER // max(1, pairs))
    for first in range(0, len(sample_ids), together):
        own = sample_ids[first : first + together]
        words = _words(seed, own, timestep, 2 * pairs, draw, crop)
        words >>= np.uint64(11)
        uniform = words.astype(np.float64)
        # The first half in (0, 1], so that its logarithm is finite; the second half is an angle in [0, 2 pi).
        radius, angle = uniform[:, :pairs].copy(), uniform[:, pairs:].copy()
        radius += 1.0
        radius *= 2.0**-53
        np.log(radius, out=radius)
        radius *= -2.0
        np.sqrt(radius, out=radius)
        angle *= 2.0 * math.pi * 2.0**-53
        out = noise[first : first + together]
        np.multiply(radius, np.cos(angle), out=out[:, :pairs], casting="same_kind")
        radius *= np.sin(angle, out=angle)
        out[:, pairs:] = radius[:, : size - pairs]
    return noise.reshape(len(sample_ids), *shape)


def _words(seed: int, sample_ids: Sequence[str], timestep: int, count: int, draw: int, crop: int) -> NDArray[np.uint64]:
    """(n, count) raw Philox words, keyed by a hash of everything that the noise of a sample depends on."""
    words = np.empty((len(sample_ids), count), dtype=np.uint64)
    philox = np.random.Philox(key=0)
    start = philox.state
    for i, sample_id in enumerate(sample_ids):
        message = json.dumps([SCHEME, int(seed), sample_id, int(timestep), int(draw), int(crop)], ensure_ascii=False)
        key = blake2b(message.encode(), digest_size=16, person=b"diffssl-noise").digest()
        # A new key in place of a new generator, which takes as long as the numbers themselves.
        start["state"]["key"] = np.frombuffer(key, dtype="<u8").astype(np.uint64)
        philox.state = start
        words[i] = philox.random_raw(count)
    return words
