from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from diffssl.extract.pooling import Tokens, pool_map


def activation(size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (10 * torch.randn(3, 5, size, size, generator=torch.Generator().manual_seed(size))).to(dtype)


@pytest.mark.parametrize("size", [1, 2, 3, 8, 16, 24, 33, 48])
def test_every_size_is_torchs_adaptive_pooling(size: int) -> None:
    values = activation(size)
    wanted = list(range(1, size + 1))
    pooled = pool_map(values, wanted)
    assert sorted(pooled) == wanted
    for p in wanted:
        found = pooled[p]
        torch.testing.assert_close(found, F.adaptive_avg_pool2d(values, p), rtol=0, atol=4e-6)  # another order of sums
        assert found.shape == (3, 5, p, p)
        assert found.dtype == torch.float32


@pytest.mark.parametrize(("size", "pool"), [(8, 1), (8, 2), (8, 4), (9, 3), (32, 2), (48, 3), (64, 2)])
def test_pooling_is_the_mean_of_each_cell(size: int, pool: int) -> None:
    values = activation(size).double()
    side = size // pool
    cells = values.reshape(3, 5, pool, side, pool, side).mean(dim=(3, 5))
    torch.testing.assert_close(pool_map(values, [pool])[pool].double(), cells, rtol=1e-5, atol=1e-5)


def test_the_whole_map_is_the_map_as_it_is() -> None:
    values = activation(8)
    assert torch.equal(pool_map(values, {8})[8], values)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pools_in_float32_whatever_the_compute_dtype(dtype: torch.dtype) -> None:
    values = activation(16, dtype)
    pooled = pool_map(values, [1, 5, 16])
    for p in (1, 5, 16):
        found = pooled[p]
        assert found.dtype == torch.float32
        assert torch.equal(found, F.adaptive_avg_pool2d(values.float(), p))


def test_large_values_do_not_overflow_in_the_mean() -> None:
    """The mean of 256 float16 values of 60,000 is 60,000, though their sum is beyond float16."""
    values = torch.full((1, 1, 16, 16), 60_000.0, dtype=torch.float16)
    assert pool_map(values, [1])[1].item() == 60_000


@pytest.mark.parametrize("sizes", [[9], [1, 9], [8, 16]])
def test_never_upsamples(sizes: list[int]) -> None:
    with pytest.raises(ValueError, match="never upsamples"):
        pool_map(activation(8), sizes)


def test_each_size_is_pooled_from_the_map_itself() -> None:
    """Not one from another: 3 from 8 is not 3 from 4 from 8."""
    values = activation(8)
    alone, together = pool_map(values, [3])[3], pool_map(values, [8, 4, 3, 2, 1])[3]
    assert torch.equal(alone, together)
    assert not torch.allclose(alone, F.adaptive_avg_pool2d(F.adaptive_avg_pool2d(values, 4), 3))


@pytest.mark.parametrize("size", [16, 32, 64])
def test_layout_of_the_map_does_not_matter(size: int) -> None:
    values = activation(size)
    for p, found in pool_map(values.to(memory_format=torch.channels_last), [1, 2, 5, 16]).items():
        torch.testing.assert_close(found, pool_map(values, [p])[p], rtol=1e-6, atol=2e-6)


def test_a_class_token_is_a_pool_of_its_own() -> None:
    token = torch.randn(3, 5, dtype=torch.float16)
    pooled = pool_map(Tokens(activation(8), token), ["cls", 1, 8])
    assert list(pooled) == ["cls", 1, 8]
    assert torch.equal(pooled["cls"], token.float()[:, :, None, None])
    assert torch.equal(pooled[8], activation(8))
    assert torch.equal(pooled[1], pool_map(activation(8), [1])[1])
    assert list(pool_map(Tokens(activation(8), token), ["cls"])) == ["cls"]


def test_a_map_without_class_token_has_none() -> None:
    with pytest.raises(ValueError, match=r"pool cls of an activation without a class token, \(3, 5, 8, 8\)"):
        pool_map(activation(8), ["cls", 1])
