"""Client programs from PyPI, each set in an environment of its own in `build/`, so that none disturbs ours."""

import subprocess
import sys
from pathlib import Path

import pytest

BUILD = Path(__file__).parents[2] / "build"
INSTALL_TIMEOUT_S = 800


def python_environment(folder: str, *packages: str) -> Path:
    """The `bin` folder of an environment with the packages. Skips the test, with the reason, where pip fails."""
    place = BUILD / folder
    programs, done = place / "bin", place / "installed.txt"
    wanted = "\n".join(packages)
    if done.exists() and done.read_text() == wanted:
        return programs
    for command in (
        [sys.executable, "-m", "venv", str(place)],
        [str(programs / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages],
    ):
        try:
            ran = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            pytest.skip(f"{' '.join(packages)} cannot be installed: no end after {INSTALL_TIMEOUT_S} s")
        if ran.returncode != 0:
            pytest.skip(f"{' '.join(packages)} cannot be installed: {ran.stderr.strip()[-300:]}")
    done.write_text(wanted)
    return programs
