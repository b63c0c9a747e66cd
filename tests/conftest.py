"""Tests run side by side, so each computes in one thread, and so do the processes that it starts."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything imports torch
