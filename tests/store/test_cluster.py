"""Clusters of processes: what is said where there is none, and what workers are given."""

from __future__ import annotations

import os
import socket

import pytest
from diffssl.store import ClusterError
from diffssl.store.cluster import connect, local_cluster, resources_of

SECONDS = 180


def test_a_scheduler_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffssl.store.cluster._CONNECT_SECONDS", 1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ClusterError, match="there is no Dask scheduler at tcp"), connect(address):
            pass


def test_workers_of_this_machine_share_its_cores() -> None:
    with local_cluster(2, 0) as client:
        client.wait_for_workers(2, timeout=SECONDS)
        threads = client.run(os.getenv, "OMP_NUM_THREADS")
        assert len(threads) == 2
        assert set(threads.values()) == {str(max(1, (os.cpu_count() or 1) // 2))}
        assert resources_of(client) is None


def test_each_worker_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names only: no GPU is touched."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    with local_cluster(2, 2) as client:
        client.wait_for_workers(2, timeout=SECONDS)
        assert sorted(client.run(os.getenv, "CUDA_VISIBLE_DEVICES").values()) == ["3", "5"]
