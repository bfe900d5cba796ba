"""What all tests share."""

import os

from hypothesis import HealthCheck, settings

os.environ.pop("COLUMNS", None)  # tables are as wide as a pipe's, whatever the terminal or a parallel runner says

# A slow or busy machine is no failure: no test asserts a time, and hypothesis must not either.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
