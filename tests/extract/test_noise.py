from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from hashlib import blake2b, sha256
from typing import Any

import diffssl.extract
import numpy as np
import pytest
import torch
from diffssl.extract import noise_for
from diffssl.extract.noise import SCHEME
from scipy import stats

# Scheme 1, for ever: (arguments, first values, SHA-256 of the whole array as little-endian float32).
GOLDEN: list[tuple[dict[str, Any], list[float], str]] = [
    (
        {"seed": 0, "sample_id": "0/0000", "timestep": 10, "shape": (3, 32, 32)},
        [-0.16496479511260986, -1.3305121660232544, -0.2218337506055832, -0.5008230209350586, 0.9196020364761353],
        "d454b2d9d617c377a86a13b823d7b65c759f68453085839efd5a792fa95966be",
    ),
    (
        {"seed": 7, "sample_id": "châtaigne/été 1.png", "timestep": 999, "shape": (3, 5, 7), "draw": 2, "crop": 3},
        [-0.7371945977210999, -1.3135555982589722, 0.2161637544631958, -0.442416250705719, -1.629797101020813],
        "d1e1aad46509635ddf0f20296ae679ee5c2875b8434bb3e481f2f0c170b5a85e",
    ),
    (
        {"seed": 123456789012345678901, "sample_id": "a", "timestep": 0, "shape": (5,)},
        [0.8972446322441101, 1.176281213760376, 1.8974015712738037, 0.22706086933612823, -0.31632521748542786],
        "1b372e6bcd191cefb1415cde79b3d20486c248bd19bb1b2dc3a3f35e873fba44",
    ),
]
BASE: dict[str, Any] = {"seed": 0, "sample_id": "cat/1.png", "timestep": 90, "shape": (3, 16, 16), "draw": 0, "crop": 0}


@pytest.mark.parametrize(("arguments", "first", "checksum"), GOLDEN)
def test_golden(arguments: dict[str, Any], first: list[float], checksum: str) -> None:
    noise = noise_for(**arguments)
    assert SCHEME == 1
    assert noise.dtype == np.float32
    assert noise.shape == arguments["shape"]
    assert noise.ravel()[: len(first)].tolist() == np.array(first, dtype=np.float32).tolist()
    assert sha256(noise.astype("<f4").tobytes()).hexdigest() == checksum


def test_golden_on_a_processor_without_wide_vectors() -> None:
    """numpy chooses its loops by the processor; the noise must not depend on which."""
    code = (
        "import hashlib, sys; from diffssl.extract.noise import noise_for\n"
        "noise = b''.join(noise_for(0, f'cat/{i}', 90, (3, 64, 64)).tobytes() for i in range(20))\n"
        "print(hashlib.sha256(noise).hexdigest(), 'torch' in sys.modules)"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            env={**os.environ, "NPY_DISABLE_CPU_FEATURES": disabled},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for disabled in ("", "X86_V3 X86_V4", "AVX2 FMA3 AVX512F AVX512_SKX")
    }
    assert len(outputs) == 1
    assert outputs.pop().split()[1] == "False"


@pytest.mark.parametrize("shape", [(1,), (2,), (3,), (7,), (3, 3, 3), (3, 8, 8)])
def test_scheme_as_documented(shape: tuple[int, ...]) -> None:
    """Box-Muller, written out number by number, over Philox words keyed by the digest of the arguments."""
    message = json.dumps([1, 5, "Köln/1.png", 30, 1, 2], ensure_ascii=False).encode()
    key = int.from_bytes(blake2b(message, digest_size=16, person=b"diffssl-noise").digest(), "little")
    size = math.prod(shape)
    pairs = (size + 1) // 2
    words = [int(word) >> 11 for word in np.random.Philox(key=key).random_raw(2 * pairs)]
    radii = [math.sqrt(-2 * math.log((word + 1) / 2**53)) for word in words[:pairs]]
    angles = [2 * math.pi * word / 2**53 for word in words[pairs:]]
    expected = [r * math.cos(a) for r, a in zip(radii, angles, strict=True)]
    expected += [r * math.sin(a) for r, a in zip(radii, angles, strict=True)]
    noise = noise_for(5, "Köln/1.png", 30, shape, draw=1, crop=2)
    assert noise.shape == shape
    np.testing.assert_allclose(noise.ravel(), np.array(expected[:size]), rtol=1e-6, atol=1e-12)


def test_is_a_pure_function() -> None:
    first = noise_for(**BASE)
    first_copy = first.copy()
    noise_for(1, "other", 3, (9,))
    first[:] = 0
    np.testing.assert_array_equal(noise_for(**BASE), first_copy)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"seed": -1},
        {"sample_id": "cat/2.png"},
        {"sample_id": "cat/1.png "},
        {"timestep": 91},
        {"draw": 1},
        {"crop": 1},
        {"draw": 1, "crop": 1},
        {"timestep": 0, "draw": 90},
    ],
    ids=str,
)
def test_every_argument_makes_other_noise(change: dict[str, Any]) -> None:
    ours, theirs = noise_for(**BASE).ravel(), noise_for(**{**BASE, **change}).ravel()
    assert not np.intersect1d(ours, theirs).size > 2
    assert abs(np.corrcoef(ours, theirs)[0, 1]) < 5 / math.sqrt(len(ours))


def test_draw_and_crop_are_not_confused() -> None:
    assert not np.array_equal(noise_for(**{**BASE, "draw": 1}), noise_for(**{**BASE, "crop": 1}))


def test_a_shape_is_only_a_shape() -> None:
    """The same numbers in the same order, whatever the shape they fill."""
    np.testing.assert_array_equal(noise_for(**BASE).ravel(), noise_for(**{**BASE, "shape": [3 * 16 * 16]}))


@pytest.mark.parametrize("shape", [(0,), (3, 0, 4)])
def test_empty(shape: tuple[int, ...]) -> None:
    assert noise_for(0, "a", 0, shape).shape == shape


def test_is_standard_normal() -> None:
    noise = noise_for(0, "cat/1.png", 90, (1_000_001,)).astype(np.float64)
    n = len(noise)
    assert abs(noise.mean()) < 4 / math.sqrt(n)
    assert abs(noise.var() - 1) < 4 * math.sqrt(2 / n)
    assert stats.kstest(noise, "norm").pvalue > 1e-3
    assert 4.5 < np.abs(noise).max() < 6.5
    for bound in (1.0, 2.0, 3.0, 4.0):
        expected = 2 * stats.norm.sf(bound) * n
        assert abs((np.abs(noise) > bound).sum() - expected) < 4 * math.sqrt(expected) + 1
    for lag in (1, 2, n // 2, n // 2 + 1):  # the two halves hold the two normals of each pair
        assert abs(np.corrcoef(noise[:-lag], noise[lag:])[0, 1]) < 5 / math.sqrt(n - lag)


def test_is_independent_over_samples_and_timesteps() -> None:
    """The first number of each of many samples is as normal as the many numbers of one."""
    over_samples = np.array([noise_for(0, f"cat/{i}.png", 90, (1,))[0] for i in range(20_000)])
    over_timesteps = np.array([noise_for(seed, "cat/1.png", t, (1,))[0] for seed in range(20) for t in range(1000)])
    for numbers in (over_samples, over_timesteps):
        assert stats.kstest(numbers, "norm").pvalue > 1e-3
        assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 5 / math.sqrt(len(numbers))


def test_touches_no_global_state() -> None:
    np.random.seed(3)  # noqa: NPY002
    before = (np.random.get_state()[1].tolist(), random.getstate(), torch.get_rng_state().tolist())  # type: ignore[index]  # noqa: NPY002
    noise_for(**BASE)
    after = (np.random.get_state()[1].tolist(), random.getstate(), torch.get_rng_state().tolist())  # type: ignore[index]  # noqa: NPY002
    assert before == after


def test_global_seeds_change_nothing() -> None:
    expected = noise_for(**BASE)
    for seed in (0, 1):
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        np.testing.assert_array_equal(noise_for(**BASE), expected)


def test_numbers_of_numpy_are_numbers() -> None:
    """A notebook loops over arrays of timesteps."""
    np.testing.assert_array_equal(
        noise_for(np.int64(0), "cat/1.png", np.int64(90), (3, 16, 16), np.int32(0)),  # type: ignore[arg-type]
        noise_for(**BASE),
    )


def test_is_public() -> None:
    assert diffssl.extract.noise_for is noise_for
    assert "noise_for" in diffssl.extract.__all__
