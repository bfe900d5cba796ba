import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the harness lies beside the tests

from fault_table import Table, table_of
from ten_faults_harness import Scene

from sekisho.control.actuators.engine_http import EngineHttp
from sekisho.core.clock import ManualClock
from sekisho.engines.http_client import HttpClient

PATIENCE_S = 60.0
DEADLINES = (
    *(f"actuators.{name}:STATE_DEADLINE_S" for name in ("engine_http", "lemonade", "onnx_genai", "openai_http")),
    *(f"actuators.{name}:STATE_DEADLINE_S" for name in ("swapping", "vllm")),
    *("detection:_ASK_S", "devices:GPU_WAIT_S", "devices:LEMONADE_DEADLINE_S", "feed:_ANSWER_S"),
    "notification:DEADLINE_S",
)
"""Of questions that are answered within milliseconds, and within seconds on a machine that is busy or stands still."""


@pytest.fixture(scope="module", autouse=True)
def patience() -> Iterator[None]:
    """No deadline for an answer passes because the machine is slow. Tests of a deadline set it themselves."""
    with pytest.MonkeyPatch.context() as patched:
        for deadline in DEADLINES:
            module, _, name = deadline.partition(":")
            patched.setattr(importlib.import_module(f"sekisho.control.{module}"), name, PATIENCE_S)
        for function in (EngineHttp.ask, EngineHttp.told):
            patched.setitem(function.__kwdefaults__, "timeout_s", PATIENCE_S)
        patched.setitem(HttpClient.__init__.__kwdefaults__, "connect_timeout_s", PATIENCE_S)
        yield


@pytest.fixture(scope="module")
def fault_table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Table]:
    """The rows of one file's faults in virtual time, written when its tests are over."""
    yield from table_of("simulated", tmp_path_factory)


@pytest.fixture
def scene(tmp_path: Path, fault_table: Table) -> Callable[[ManualClock], Scene]:
    """For tests that are `simulated`."""
    return functools.partial(Scene, tmp_path, fault_table)
