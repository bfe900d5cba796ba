"""What all tests share."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent / "ports"))

from kept_port import KeptPort

os.environ.pop("COLUMNS", None)  # tables are as wide as a pipe's, whatever the terminal or a parallel runner says

# A slow or busy machine is no failure: no test asserts a time, and hypothesis must not either. Its examples are the
# same in every run, so that a change is judged by what it changed; `make test-explore` looks for new ones.
_EXPLORE = os.environ.get("SEKISHO_TESTS_EXPLORE", "") not in ("", "0")
settings.register_profile(
    "any machine",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=not _EXPLORE,
    print_blob=True,
)
settings.load_profile("any machine")


@pytest.fixture
def unused_tcp_port_factory() -> Iterator[Callable[[], int]]:
    """Ports that are the test's own while it runs: pytest-asyncio's may be another's by the time they are used."""
    with ExitStack() as kept:
        yield lambda: kept.enter_context(KeptPort())


@pytest.fixture
def unused_tcp_port(unused_tcp_port_factory: Callable[[], int]) -> int:
    return unused_tcp_port_factory()
