"""The resource balancer: under pressure smaller batches, then layers to the processor, then lower precision, one step
at a time; back in reverse order when the pressure is gone.
"""

from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any, Final, Literal

import msgspec

from sekisho.control.base import Signals
from sekisho.control.fallback_rules import PRECEDENCE, slots_now
from sekisho.control.overlay import Overlay, in_full, nested, value_of
from sekisho.control.policy import Policy
from sekisho.engines.config import KvType
from sekisho.engines.kv_size import KV_BITS

Resource = Literal["gpu", "vram", "cpu", "ram"]
Kind = Literal["batch", "offload", "precision"]
Load = Literal["pressed", "between", "easy", "unknown"]
ORDER: Final[tuple[Kind, ...]] = ("batch", "offload", "precision")
RANK: Final = len(PRECEDENCE)  # after every fallback
_LADDER_OF_TYPES: Final[tuple[KvType, ...]] = ("q8_0", "q4_0")
_TOLD_AS: Final = {"kv.key_type": "kv_type_k", "kv.value_type": "kv_type_v"}  # in an engine's settings
_HISTORY: Final = 200
REFUSED_AGAIN_S: Final = 900.0  # a try may hold turns for a minute


class Band(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """At or above `high` is pressure, below `low` is ease, between nothing changes."""

    high: float
    low: float

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high <= 1:
            raise ValueError(f"0 < low < high <= 1 must hold, not {self.low:g} and {self.high:g}")


class Balance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`gpu` and `cpu` are None as long as nobody sets them: a busy processor is what such a machine is for, and fewer
    requests at once would only make it slower. Set them where others work on the same machine. The memory bands begin
    below that of the fallback «memory», which is for when this was not enough. `readings`: under pressure in a row
    before a step. `settle_s`: between two steps, either way. `calm_s`: of ease before a step back; doubles up to
    `calm_limit_s` each time pressure returns after one.
    """

    gpu: Band | None = None
    vram: Band = Band(0.96, 0.85)
    cpu: Band | None = None
    ram: Band = Band(0.90, 0.75)
    readings: int = 3
    settle_s: float = 30.0
    calm_s: float = 120.0
    calm_limit_s: float = 3_600.0


class Step(msgspec.Struct, frozen=True):
    """One change. `changes` as `policy_changes.merged` takes them; empty where the field is back already. `resource`,
    `value`, `limit`: what decided."""

    at: float
    kind: Kind
    direction: Literal["down", "up"]
    changes: dict[str, Any]
    resource: Resource | None
    value: float | None
    limit: float | None
    depth: int


class Summary(msgspec.Struct, frozen=True):
    """`steps`: counts by `down batch` and the like. `seconds`: time in each state of load. `depth`: steps in force.
    `reduced_s`: time with at least one. `usage`: the latest shares.
    `skipped`: steps that cannot be made here, and why."""

    load: Load
    depth: int
    steps: dict[str, int]
    seconds: dict[str, float]
    reduced_s: float
    calm_s: float
    usage: Mapping[Resource, float]
    skipped: dict[str, str]


class _Done(msgspec.Struct, frozen=True):
    kind: Kind
    claimant: str
    resource: Resource
    was: Mapping[str, Any]  # by field, what the policy had


class Balancer:
    """One for each policy. Pure but for what it remembers; time is `signals.monotonic_s`. A step must be applied before
    the next `step`; what is not in the policy by then counts as refused, and nothing is tried for a quarter of an hour.
    `layers`: of the model, where known: without, nothing can be offloaded in parts. `kv_types`: tells those that
    really run here, as far as that is known by then (None: not, and all are taken to)."""

    def __init__(
        self,
        settings: Balance | None = None,
        *,
        overlay: Overlay | None = None,
        layers: int | None = None,
        kv_types: Callable[[], Collection[str] | None] | None = None,
    ) -> None:
        self._settings = settings if settings is not None else Balance()
        self.overlay = overlay if overlay is not None else Overlay()
        self._layers = layers
        self._kv_types = kv_types
        self._done: list[_Done] = []
        self._theirs: set[str] = set()
        self._confirmed: set[str] = set()
        self._refused_until_s = float("-inf")
        self._pressed_in_a_row = 0
        self._easy_since_s: float | None = None
        self._last_step_s: float | None = None
        self._last_up = False
        self._calm_s = self._settings.calm_s
        self._number = 0
        self._history: deque[Step] = deque(maxlen=_HISTORY)
        self._counts: Counter[str] = Counter()
        self._seconds: dict[str, float] = dict.fromkeys(("pressed", "between", "easy", "unknown"), 0.0)
        self._reduced_s = 0.0
        self._load: Load = "unknown"
        self._looked_s: float | None = None
        self._usage: dict[Resource, float] = {}
        self._skipped: dict[str, str] = {}

    @property
    def history(self) -> tuple[Step, ...]:
        """The latest 200 steps, oldest first."""
        return tuple(self._history)

    def summary(self) -> Summary:
        return Summary(
            self._load,
            len(self._done),
            dict(self._counts),
            dict(self._seconds),
            self._reduced_s,
            self._calm_s,
            dict(self._usage),
            dict(self._skipped),
        )

    def step(self, signals: Signals, policy: Policy) -> Step | None:
        """At most one change."""
        now_s = signals.monotonic_s
        self._account(now_s)
        self._theirs |= self.overlay.reconcile(policy, now_s).theirs
        self._look_after_claims(policy, now_s)
        shares = self._usage = usage(signals)
        worst, self._load = load(shares, self._settings)
        self._pressed_in_a_row = self._pressed_in_a_row + 1 if self._load == "pressed" else 0
        if self._load != "easy":
            self._easy_since_s = None
        elif self._easy_since_s is None:
            self._easy_since_s = now_s
        if not self._done and self._load == "easy":
            self._theirs.clear()
        if self._last_step_s is not None and now_s - self._last_step_s < self._settings.settle_s:
            return None
        if now_s < self._refused_until_s:
            return None
        if worst is not None and self._load == "pressed" and self._pressed_in_a_row >= self._settings.readings:
            return self._down(worst, signals, policy)
        easy_s = 0.0 if self._easy_since_s is None else now_s - self._easy_since_s
        if self._done:
            measured = self._done[-1].resource in shares
            if easy_s >= (self._calm_s if measured else self._settings.calm_limit_s):
                return self._up(shares, signals, policy)
        elif easy_s >= self._calm_s:
            self._calm_s, self._last_up = self._settings.calm_s, False  # it held without our help
        return None

    def let_go(self, policy: Policy, monotonic_s: float) -> dict[str, Any]:
        """Undoes all steps at once, for an owner who wants no balancing now; answers with the changes. `step` begins
        anew when it is asked again; the time until then is not counted."""
        mine = {done.claimant for done in self._done}
        self._done, self._pressed_in_a_row, self._easy_since_s = [], 0, None
        self._looked_s = None
        return nested(self.overlay.release(policy, mine.__contains__, monotonic_s))

    def _look_after_claims(self, policy: Policy, now_s: float) -> None:
        """What became of the steps: one that is claimed no more, was never seen in force and left the policy as it was,
        was refused; other fields that are claimed no more are a person's. (Whoever shares the overlay may have
        reconciled it before us.)"""
        held = {claim.claimant: claim.fields.keys() for claim in self.overlay.state().claims}
        for done in self._done:
            untouched = all(value_of(policy, name) == value for name, value in done.was.items())
            if done.claimant not in held and done.claimant not in self._confirmed and untouched:
                self._refused_until_s = now_s + REFUSED_AGAIN_S
            else:
                self._theirs |= done.was.keys() - held.get(done.claimant, set())
                self._confirmed.add(done.claimant)
        self._done = [done for done in self._done if done.claimant in held]
        self._confirmed &= held.keys()

    def _account(self, now_s: float) -> None:
        passed_s = 0.0 if self._looked_s is None else max(0.0, now_s - self._looked_s)
        self._looked_s = now_s
        self._seconds[self._load] += passed_s
        if self._done:
            self._reduced_s += passed_s

    def _down(self, resource: Resource, signals: Signals, policy: Policy) -> Step | None:
        """The next step in the order; never one of an earlier kind than the last."""
        first = ORDER.index(self._done[-1].kind) if self._done else 0
        for kind in ORDER[first:]:
            wanted = _WANTS[kind](self, resource, signals, policy)
            fields = {name: value for name, value in in_full(wanted).items() if name not in self._theirs}
            claimant = f"balance\0{self._number}"
            changes = self.overlay.claim(policy, claimant, RANK, fields, signals.monotonic_s) if fields else {}
            if not changes:
                self.overlay.release(policy, claimant.__eq__, signals.monotonic_s)  # another rule holds the field
                continue
            self._number += 1
            claim = next(claim for claim in self.overlay.state().claims if claim.claimant == claimant)
            was = {name: value_of(policy, name) for name in claim.fields}
            self._done.append(_Done(kind, claimant, resource, was))
            if self._last_up:
                self._calm_s = min(self._calm_s * 2, self._settings.calm_limit_s)
            limit = getattr(self._settings, resource).high
            value, depth = self._usage[resource], len(self._done)
            return self._made(Step(signals.at, kind, "down", nested(changes), resource, value, limit, depth))
        return None

    def _up(self, shares: Mapping[Resource, float], signals: Signals, policy: Policy) -> Step:
        last = self._done.pop()
        changes = self.overlay.release(policy, last.claimant.__eq__, signals.monotonic_s)
        band: Band = getattr(self._settings, last.resource)
        value, limit = shares.get(last.resource), band.low
        return self._made(
            Step(signals.at, last.kind, "up", nested(changes), last.resource, value, limit, len(self._done))
        )

    def _made(self, step: Step) -> Step:
        self._last_step_s = self._looked_s
        self._last_up = step.direction == "up"
        self._pressed_in_a_row = 0
        if step.direction == "up":
            self._easy_since_s = None  # each step back is watched for a whole calm time
        self._history.append(step)
        self._counts[f"{step.direction} {step.kind}"] += 1
        return step

    def _batch(self, resource: Resource, signals: Signals, policy: Policy) -> dict[str, Any]:
        slots = self.overlay.value(policy, "engine.slots") or slots_now(policy, signals)
        if slots is None:
            self._skipped["batch"] = "no engine tells how many requests it takes at once"
            return {}
        self._skipped.pop("batch", None)
        return {"engine.slots": max(1, slots // 2)} if slots > 1 else {}

    def _offload(self, resource: Resource, signals: Signals, policy: Policy) -> dict[str, Any]:
        if resource not in ("gpu", "vram"):
            return {}  # the processor and its memory would get more to do
        if self._layers is None:
            self._skipped["offload"] = "the model's number of layers is not known"
            return {}
        now = self.overlay.value(policy, "engine.gpu_layers")
        on_gpu = self._layers if now is None or now < 0 else min(now, self._layers)
        quarter = max(1, -(-self._layers // 4))
        return {"engine.gpu_layers": max(0, on_gpu - quarter)} if on_gpu > 0 else {}

    def _precision(self, resource: Resource, signals: Signals, policy: Policy) -> dict[str, Any]:
        """Keys and values in eight, then in four bits. People who switched compression off, or asked for quality, keep
        what they asked for."""
        mode = self.overlay.value(policy, "kv.mode")
        if mode == "disabled":
            self._skipped["precision"] = "kv.mode is disabled"
            return {}
        self._skipped.pop("precision", None)
        types = self._types if mode != "quality_optimized" else tuple(t for t in self._types if t == "q8_0")
        unnamed = any(self.overlay.value(policy, name) is None for name in _TOLD_AS)
        if unnamed and any(engine.state != "ready" for engine in signals.engines):
            self._skipped["precision"] = "an engine that is not ready does not tell its types"
            return {}
        now = {name: self._bits(name, signals, policy) for name in _TOLD_AS}
        lower = next((kind for kind in types if KV_BITS[kind] < max(now.values())), None)
        if lower is None:
            return {}
        fields: dict[str, Any] = {name: lower for name, bits in now.items() if KV_BITS[lower] < bits}
        if lower == _LADDER_OF_TYPES[-1] and mode != "throughput_optimized":
            fields["kv.mode"] = "throughput_optimized"  # for engines with a tiered cache instead of one type
        return fields

    @property
    def _types(self) -> tuple[KvType, ...]:
        run = None if self._kv_types is None else self._kv_types()
        return tuple(kind for kind in _LADDER_OF_TYPES if run is None or kind in run)

    def _bits(self, name: str, signals: Signals, policy: Policy) -> float:
        """Bits of keys or of values: by policy, else the fewest of all engines that tell them, so that a common type
        gives none of them more."""
        kind = self.overlay.value(policy, name)
        told: list[Any] = (
            [kind] if kind is not None else [engine.settings.get(_TOLD_AS[name]) for engine in signals.engines]
        )
        return min((KV_BITS[each] for each in told if each in KV_BITS), default=KV_BITS["f16"])


_WANTS: Final[Mapping[Kind, Callable[[Balancer, Resource, Signals, Policy], dict[str, Any]]]] = MappingProxyType(
    {"batch": Balancer._batch, "offload": Balancer._offload, "precision": Balancer._precision}
)


def usage(signals: Signals) -> dict[Resource, float]:
    """The fullest share of each kind of resource; what nobody tells is missing."""
    shares: dict[Resource, float] = {}

    def see(resource: Resource, share: float | None) -> None:
        if share is not None:
            shares[resource] = max(share, shares.get(resource, 0.0))

    for device in signals.devices:
        if not device.present:
            continue
        filled = (
            device.used_bytes / device.total_bytes if device.used_bytes is not None and device.total_bytes else None
        )
        if device.kind == "gpu":
            see("gpu", device.utilisation)
            see("vram", filled)
        elif device.kind == "cpu":
            see("cpu", device.utilisation)
        elif device.kind == "memory":
            see("ram", filled)
    return shares


def load(shares: Mapping[Resource, float], settings: Balance) -> tuple[Resource | None, Load]:
    """The resource that is most above its limit, and how it stands. Resources without a band decide nothing."""
    bands: dict[Resource, Band] = {
        name: getattr(settings, name) for name in shares if getattr(settings, name) is not None
    }
    if not bands:
        return None, "unknown"
    worst = max(bands, key=lambda name: shares[name] / bands[name].high)
    if shares[worst] >= bands[worst].high:
        return worst, "pressed"
    return None, "easy" if all(shares[name] < band.low for name, band in bands.items()) else "between"
