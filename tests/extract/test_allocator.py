from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import numpy as np
from diffssl.extract.allocator import keep_freed_memory

if sys.argv[1] == "told":
    assert keep_freed_memory()
for _ in range(3):
    arrays = [np.ones(1 << 20) for _ in range(20)]
    del arrays
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
arrays = [np.ones(1 << 20) for _ in range(20)]
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(argument: str) -> int:
    """Pages that the system gives to a process for memory that the process had before."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, argument], check=True, capture_output=True, text=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is about glibc's malloc")
def test_memory_that_was_freed_stays_with_the_process() -> None:
    assert faults("told") < 100
    assert faults("not told") > 1000
