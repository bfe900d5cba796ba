"""Client programs from npm, installed once into `build/` and kept there."""

import shutil
import subprocess
from pathlib import Path

import pytest

BUILD = Path(__file__).parents[2] / "build"
INSTALL_TIMEOUT_S = 600


def npm_program(package: str, program: str, folder: str) -> Path:
    """The program of an npm package. Skips the test, with the reason, where it cannot be had."""
    prefix = BUILD / folder
    found = prefix / "node_modules" / ".bin" / program
    if found.exists():
        return found
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip(f"npm is not installed, so {package} cannot be")
    prefix.mkdir(parents=True, exist_ok=True)
    command = [npm, "install", "--prefix", str(prefix), "--no-audit", "--no-fund", package]
    done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
    if done.returncode != 0 or not found.exists():
        pytest.skip(f"npm could not install {package}: {done.stderr.strip()[-300:]}")
    return found
