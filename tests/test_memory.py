"""What becomes of freed memory, seen from the pages that a process is given and those it holds."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

GLIBC = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
STEPS = """
import resource, sys, torch
from rtbench.engine.memory import give_back, reuse_freed

def steps(n):
    for _ in range(n):
        torch.ones(2**24)

def held():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 2**20

if sys.argv[1] == "reuse":
    reuse_freed()
steps(5)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
steps(20)
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
full = held()
give_back()
print(faults, full - held())
"""


def watched(how: str) -> tuple[float, float]:
    """(pages given to 20 steps of 64 MB; MB handed back after them)."""
    found = subprocess.run([sys.executable, "-c", STEPS, how], capture_output=True, text=True, check=True)
    faults, back = map(float, found.stdout.split())
    return faults, back


@GLIBC
def test_a_step_uses_the_memory_of_the_step_before() -> None:
    reused, back = watched("reuse")
    assert reused < watched("default")[0] / 2
    assert back > 32


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    from rtbench.engine import memory

    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    memory.reuse_freed()
    memory.give_back()
