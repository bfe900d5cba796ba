import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the harness lies beside the tests

from fault_table import Table, table_of
from ten_faults_harness import Scene

from sekisho.core.clock import ManualClock


@pytest.fixture(scope="module")
def fault_table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Table]:
    """The rows of one file's faults in virtual time, written when its tests are over."""
    yield from table_of("simulated", tmp_path_factory)


@pytest.fixture
def scene(tmp_path: Path, fault_table: Table) -> Callable[[ManualClock], Scene]:
    """For tests that are `simulated`."""
    return functools.partial(Scene, tmp_path, fault_table)
