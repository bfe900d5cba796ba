"""What all tests share."""

from hypothesis import HealthCheck, settings

# A slow or busy machine is no failure: no test asserts a time, and hypothesis must not either.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
