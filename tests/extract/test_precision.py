from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from diffssl.extract.precision import tf32


def settings() -> tuple[bool, bool]:
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


@pytest.fixture(params=[(True, False), (False, True)], ids=["torch's default", "the other way round"])
def before(request: pytest.FixtureRequest) -> Iterator[tuple[bool, bool]]:
    """What is set outside; torch keeps it without a GPU too."""
    was = settings()
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = request.param
    yield request.param
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = was


@pytest.mark.parametrize("allowed", [False, True])
def test_set_for_a_gpu_and_put_back(before: tuple[bool, bool], allowed: bool) -> None:
    with tf32(torch.device("cuda"), allowed):
        assert settings() == (allowed, allowed)
    assert settings() == before
    with pytest.raises(KeyError), tf32(torch.device("cuda", 1), allowed):
        raise KeyError
    assert settings() == before


def test_nothing_is_set_for_a_cpu(before: tuple[bool, bool]) -> None:
    with tf32(torch.device("cpu"), not before[0]):
        assert settings() == before
