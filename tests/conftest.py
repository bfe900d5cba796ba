"""What all tests share."""

import os

from hypothesis import HealthCheck, settings

os.environ.pop("COLUMNS", None)  # tables are as wide as a pipe's, whatever the terminal or a parallel runner says

# A slow or busy machine is no failure: no test asserts a time, and hypothesis must not either. Its examples are the
# same in every run, so that a change is judged by what it changed; `make test-explore` looks for new ones.
_EXPLORE = os.environ.get("SEKISHO_TESTS_EXPLORE", "") not in ("", "0")
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=not _EXPLORE, print_blob=True
)
settings.load_profile("any machine")
