"""Every test session measures into a latency table of its own, on two threads at most."""

from __future__ import annotations

import os
import tempfile

os.environ.setdefault("TVM_NUM_THREADS", "2")
os.environ["HWPRUNE_CACHE"] = tempfile.mkdtemp(prefix="hwprune-tests-")
