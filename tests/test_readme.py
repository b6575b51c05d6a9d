"""The README's examples run as written."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import readme

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def fenced(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def environment(tmp_path: Path) -> dict[str, str]:
    scripts = str(Path(sys.executable).parent)
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PATH": f"{scripts}:{os.environ['PATH']}",
        "HWPRUNE_CACHE": str(tmp_path / "cache"),
    }


def test_the_python_example_runs(tmp_path) -> None:
    for code in fenced("python"):
        subprocess.run(
            [sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment(tmp_path)
        )
    assert (tmp_path / "out" / "manifest.json").is_file()


@pytest.mark.slow
def test_the_commands_run(tmp_path) -> None:
    block = next(b for b in fenced("sh") if "hwprune compile" in b)
    for line in block.splitlines():
        words = shlex.split(line, comments=True)
        done = subprocess.run(
            words, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True
        )
        assert done.returncode == 0, f"{line}\n{done.stderr}"


def test_the_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", "\n".join(fenced("sh")), flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


def test_the_tables_are_those_of_the_committed_results():
    assert readme.render(README) == README
    shown = set(re.findall(r"<!-- (\w+) -->", README))
    measured = {name for name in readme.TABLES if (readme.RESULTS / f"{name}.json").exists()}
    assert shown == measured
    for name in shown:
        assert re.search(rf"<!-- {name} -->\n\| (model|network|method|system) ", README)
