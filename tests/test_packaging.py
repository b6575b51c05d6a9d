"""A wheel, installed elsewhere, finds its targets."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_a_wheel_brings_its_targets(tmp_path) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "--wheel-dir", str(tmp_path), str(ROOT)],
        check=True,
    )  # fmt: skip
    wheel = next(tmp_path.glob("hwprune-*.whl"))
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = (
        "import hwprune, pathlib; "
        f"assert pathlib.Path(hwprune.__file__).is_relative_to({str(site)!r}); "
        "assert {'host', 'x86-64-v3', 'x86-64-v4'} <= set(hwprune.list_targets()); "
        "assert hwprune.load_target('x86-64-v4').lanes == 16; "
        "assert (pathlib.Path(hwprune.__file__).parent / 'remote/driver.c').is_file()"
    )
    env = {**os.environ, "PYTHONPATH": str(site)}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=env)
