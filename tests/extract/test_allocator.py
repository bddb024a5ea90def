from __future__ import annotations

import os
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
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run([sys.executable, "-c", PROGRAM, argument], check=True, capture_output=True, text=True, env=plain)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is about glibc's malloc")
def test_memory_that_was_freed_stays_with_the_process() -> None:
    assert 10 * faults("told") < faults("not told")  # of small pages or huge ones, as the system has it
