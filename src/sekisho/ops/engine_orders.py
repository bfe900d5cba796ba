"""What the supervisor tells the gateway while it exchanges a worker, and what the gateway answers."""

import msgspec

from sekisho.engines.config import ModelConfig

MOVE_PATH = "/internal/engines/move"
HOLD_PATH = "/internal/engines/hold"
TRAFFIC_PATH = "/internal/engines"


class MoveOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """New turns of `model` go to `url`, with these settings. `number` rises with each order of one supervisor."""

    model: str
    number: int
    url: str
    config: ModelConfig
    log_path: str | None = None


class HoldOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Turns of `model` wait for at most `for_s` seconds, unless they are held again; 0 lets them go on."""

    model: str
    number: int
    for_s: float


class TrafficState(msgspec.Struct, frozen=True):
    """`calls`: under way, by the worker's address. `running`: who holds a slot, of former workers too. In the answer to
    a hold, `waiting` is who waited when the order came."""

    url: str | None
    calls: dict[str, int]
    running: int
    waiting: int
    held: bool
    slots: int
    last_order: int
