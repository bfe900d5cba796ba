"""Settings of the `control:` part of sekisho.yaml."""

from typing import Literal

import msgspec

DEFAULT_PORT = 7031
Acting = Literal["quality", "fallback", "balance"]


class LoopsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Periods. `fast`: waits and time-outs; `middle`: engines, devices, balance; `slow`: quality, history."""

    fast_s: float = 1.0
    middle_s: float = 5.0
    slow_s: float = 60.0


class QualityLoopConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`full_at`: time of day of the full perplexity run, in `zone` (None: the machine's). `text`: a file of your own
    to measure on; None: the built-in text. `enabled` False measures nothing by itself."""

    enabled: bool = True
    full_at: str = "06:00"
    light_every_h: float = 4.0
    zone: str | None = None
    text: str | None = None
    step_back_after: int | None = None


class ControlConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`port` 0 takes any free one; a taken 7031 gives way to a free one, told in `run/agent.json`. `act`: what the
    agent may do by itself once a person has set a policy; quality and fallbacks are else advised, balance is left.
    `cors_origins`: web pages of other origins that may call. `webhook_url`: where alerts go; `webhook_key_env` names
    the variable with the key that signs them."""

    enabled: bool = True
    port: int = DEFAULT_PORT
    loops: LoopsConfig = LoopsConfig()
    quality: QualityLoopConfig = QualityLoopConfig()
    act: tuple[Acting, ...] = ("quality", "fallback")
    window_s: float = 60.0
    cors_origins: tuple[str, ...] = ()
    webhook_url: str | None = None
    webhook_key_env: str | None = None
