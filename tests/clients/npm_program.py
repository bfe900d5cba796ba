"""Client programs from npm, installed once into `build/` and kept there."""

import shutil
import subprocess
from pathlib import Path

import pytest

BUILD = Path(__file__).parents[2] / "build"
INSTALL_TIMEOUT_S = 240
TRIES = 2  # a registry that stops in the middle of a file answers the next time
_missing: dict[str, str] = {}  # why a package could not be had: asked once a run


def npm_program(package: str, program: str, folder: str) -> Path:
    """The program of an npm package. Skips the test, with the reason, where it cannot be had."""
    prefix = BUILD / folder
    found = prefix / "node_modules" / ".bin" / program
    if found.exists():
        return found
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip(f"npm is not installed, so {package} cannot be")
    if package in _missing:
        pytest.skip(_missing[package])
    prefix.mkdir(parents=True, exist_ok=True)
    command = [npm, "install", "--prefix", str(prefix), "--no-audit", "--no-fund", "--fetch-timeout=60000", package]
    why = ""
    for _ in range(TRIES):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            why = f"no end after {INSTALL_TIMEOUT_S} s"
            continue
        if done.returncode == 0 and found.exists():
            return found
        why = done.stderr.strip()[-300:]
    _missing[package] = f"npm could not install {package}: {why}"
    pytest.skip(_missing[package])
