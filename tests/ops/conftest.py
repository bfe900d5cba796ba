"""What tests of operations share: a doctor who is in no hurry."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the harness lies beside the tests

from doctor_harness import unhurried


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    unhurried(monkeypatch)
