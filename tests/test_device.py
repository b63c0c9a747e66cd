"""Runs the tests of on_pretend.py in processes of their own: torch cannot forget a device."""

import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

HERE = Path(__file__).parent


@pytest.mark.skipif(not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"), reason="needs devices written in Python")
@pytest.mark.parametrize("which", ["study", "not study"])
def test_on_a_pretend_device(which: str) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", which, str(HERE / "on_pretend.py")]
    ended = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout[-5000:] + ended.stderr[-2000:]
