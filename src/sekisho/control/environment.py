"""The variables and flags that programs of the AMD GAIA world set, as settings of the agent and changes of its policy.

| variable | becomes |
| --- | --- |
| `INFEROS_ENABLED` | whether the agent runs |
| `INFEROS_AGENT_URL`, `INFEROS_AGENT_PORT`, `INFEROS_RANDOM_PORT` | where it listens, on this machine only |
| `INFEROS_AGENT_TOKEN` | the token that changes need |
| `INFEROS_LOG_LEVEL`, `--debug` | how much it logs |
| `GAIA_OPTIMIZATION_MODE`, `--optimization` | `inferos`: the agent runs; `none`: the baseline |
| `GAIA_KV_QUANTIZATION`, `--kv-quantization` | `kv.mode`: `dynamic` or `disabled` |
| `--mode` | `scheduler.mode` and its devices |
| `--batch-size` | `engine.slots` |
| `--quality-threshold` | `quality.max_delta_ppl` |
| `--max-tokens`, `--memory-limit` | a note where that is set instead |

An empty value counts as not set. A wrong one raises PolicyProblem with the name of its variable or flag.
"""

import ipaddress
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, TypeVar
from urllib.parse import urlsplit

import msgspec

from sekisho.control.policy import Policy
from sekisho.control.policy_changes import PolicyProblem, merged, overlaid
from sekisho.control.policy_problem import shown
from sekisho.control.presets import BASELINE, PLACEMENTS
from sekisho.control.units import human, memory_bytes
from sekisho.ops.engine_door import Secret

LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
Flag = str | int | float | bool | None
T = TypeVar("T")

_YES: Final = frozenset({"true", "1", "yes", "on"})
_NO: Final = frozenset({"false", "0", "no", "off"})
_LEVELS: Final[tuple[LogLevel, ...]] = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_SHORT_TOKEN: Final = 16
VARIABLES: Final = (
    "INFEROS_ENABLED",
    "INFEROS_AGENT_URL",
    "INFEROS_AGENT_TOKEN",
    "INFEROS_AGENT_PORT",
    "INFEROS_RANDOM_PORT",
    "INFEROS_LOG_LEVEL",
    "GAIA_OPTIMIZATION_MODE",
    "GAIA_KV_QUANTIZATION",
)

FLAGS: Final = (
    "--optimization",
    "--mode",
    "--kv-quantization",
    "--batch-size",
    "--max-tokens",
    "--quality-threshold",
    "--memory-limit",
    "--debug",
)


class EnvironmentSettings(msgspec.Struct, frozen=True):
    """What was said; None where nothing was. `url` has no path and no trailing slash. `changes` are for
    `policy_changes.merged`. `notes` are for people."""

    enabled: bool | None = None
    url: str | None = None
    token: Secret | None = None
    port: int | None = None
    random_port: bool = False
    log_level: LogLevel | None = None
    changes: dict[str, Any] = {}
    notes: tuple[str, ...] = ()


def from_environment(values: Mapping[str, str]) -> EnvironmentSettings:
    """Of all variables of a process those that concern the agent. `INFEROS_ENABLED` beats the optimisation mode,
    `GAIA_KV_QUANTIZATION` its baseline."""
    given = {name: values[name].strip() for name in VARIABLES if values.get(name, "").strip()}
    notes = [f"{name} is not known; known are {', '.join(VARIABLES)}" for name in values if _is_stranger(name)]
    optimised, changes = _optimisation("GAIA_OPTIMIZATION_MODE", given)
    enabled = _read(given, "INFEROS_ENABLED", _boolean)
    if enabled is False and optimised:
        notes.append("GAIA_OPTIMIZATION_MODE=inferos is without effect: INFEROS_ENABLED=false")
    random_port = _read(given, "INFEROS_RANDOM_PORT", _boolean) or False
    url = _read(given, "INFEROS_AGENT_URL", _local_url)
    port = _read(given, "INFEROS_AGENT_PORT", _port)
    if url is not None:
        told = urlsplit(url).port or 80
        if random_port:
            notes.append("INFEROS_AGENT_URL names a port, but INFEROS_RANDOM_PORT=true takes any")
        elif port not in (None, told):
            raise PolicyProblem("INFEROS_AGENT_PORT", f"is {port}, but INFEROS_AGENT_URL says {told}")
        port = told if port is None else port
    token = _read(given, "INFEROS_AGENT_TOKEN", _token)
    if token is not None and len(token.reveal()) < _SHORT_TOKEN:
        notes.append(f"INFEROS_AGENT_TOKEN has fewer than {_SHORT_TOKEN} characters: it can be guessed")
    return EnvironmentSettings(
        enabled=optimised if enabled is None else enabled,
        url=url,
        token=token,
        port=None if random_port else port,
        random_port=random_port,
        log_level=_read(given, "INFEROS_LOG_LEVEL", _log_level),
        changes=overlaid(changes, _quantisation("GAIA_KV_QUANTIZATION", given)),
        notes=tuple(notes),
    )


def from_flags(flags: Mapping[str, Flag]) -> EnvironmentSettings:
    """Of flags as in `{"--batch-size": "4", "--debug": True}`; None and False are flags that were not given. The more
    special one wins. Raises PolicyProblem for an unknown one, with the known ones."""
    for name in flags:
        if name not in FLAGS:
            raise PolicyProblem(name, f"is no flag here; valid: {', '.join(FLAGS)}")
    given = {name: str(value).strip() for name, value in flags.items() if value is not None and value is not False}
    enabled, changes = _optimisation("--optimization", given)
    for reader in (_placement, _slots, _threshold):
        changes = overlaid(changes, reader(given))
    return EnvironmentSettings(
        enabled=enabled,
        log_level="DEBUG" if "--debug" in given else None,
        changes=overlaid(changes, _quantisation("--kv-quantization", given)),
        notes=tuple(_notes(given)),
    )


def _is_stranger(name: str) -> bool:
    return name.upper().startswith("INFEROS_") and name not in VARIABLES


def _read(given: Mapping[str, str], name: str, reader: Callable[[str, str], T]) -> T | None:
    return reader(name, given[name]) if name in given else None


def _boolean(name: str, text: str) -> bool:
    if text.lower() not in _YES | _NO:
        raise PolicyProblem(name, f"must be true or false, not {shown(text)}")
    return text.lower() in _YES


def _log_level(name: str, text: str) -> LogLevel:
    for level in _LEVELS:
        if text.upper() == level:
            return level
    raise PolicyProblem(name, f"must be one of {', '.join(_LEVELS)}, not {shown(text)}")


def _port(name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 5 and 1 <= int(text) <= 65_535):
        raise PolicyProblem(
            name, f"must be between 1 and 65535 (any free one: INFEROS_RANDOM_PORT=true), not {shown(text)}"
        )
    return int(text)


def _token(name: str, text: str) -> Secret:
    """Its text stands in no message."""
    if not (text.isascii() and text.isprintable() and " " not in text):
        raise PolicyProblem(name, "must be printable ASCII without spaces: it travels in a header")
    return Secret(text)


def _local_url(name: str, text: str) -> str:
    """The agent listens on this machine alone, so it is nowhere else. A password in the address is not repeated."""
    problem = PolicyProblem(name, "must be as http://127.0.0.1:7031: http, this machine, no user, no query")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise problem from None
    plain = parts.scheme == "http" and parts.username is None and not parts.query and not parts.fragment
    if not plain or parts.path.rstrip("/") not in ("", "/v1") or port == 0 or not _is_loopback(host):
        raise problem
    host = f"[{host}]" if ":" in host else host
    return f"http://{host}" if port is None else f"http://{host}:{port}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _choice(name: str, text: str, *choices: str) -> str:
    if text.lower() not in choices:
        raise PolicyProblem(name, f"must be one of {', '.join(choices)}, not {shown(text)}")
    return text.lower()


def _optimisation(name: str, given: Mapping[str, str]) -> tuple[bool | None, dict[str, Any]]:
    """Whether it is wanted, and what that changes. `inferos` changes nothing: the policy in force is the optimised
    one."""
    if name not in given:
        return None, {}
    if _choice(name, given[name], "inferos", "none") == "inferos":
        return True, {}
    return None, dict(BASELINE.changes)


def _quantisation(name: str, given: Mapping[str, str]) -> dict[str, Any]:
    if name not in given:
        return {}
    wanted = _choice(name, given[name], "enabled", "disabled")
    return {"kv": {"mode": "dynamic" if wanted == "enabled" else "disabled"}}


def _placement(given: Mapping[str, str]) -> dict[str, Any]:
    name = "--mode"
    return {"scheduler": dict(PLACEMENTS[_choice(name, given[name], *PLACEMENTS)])} if name in given else {}


def _slots(given: Mapping[str, str]) -> dict[str, Any]:
    name = "--batch-size"
    return _checked(name, {"engine": {"slots": _count(name, given[name])}}) if name in given else {}


def _threshold(given: Mapping[str, str]) -> dict[str, Any]:
    name = "--quality-threshold"
    if name not in given:
        return {}
    try:
        limit = float(given[name])
    except ValueError:
        raise PolicyProblem(name, f"must be a number, not {shown(given[name])}") from None
    return _checked(name, {"quality": {"max_delta_ppl": limit}})


def _notes(given: Mapping[str, str]) -> list[str]:
    """Where the flags without a counterpart in a policy are set instead."""
    notes = []
    if (name := "--max-tokens") in given:
        notes.append(
            f"{name} {_count(name, given[name])} changes nothing here: each request says it itself (max_tokens, "
            "max_completion_tokens or max_output_tokens)"
        )
    if (name := "--memory-limit") in given:
        notes.append(
            f"{name} {human(_size(name, given[name]))} changes nothing here: no engine is limited as a whole. What its "
            "cache takes is set in sekisho.yaml: kv_limit_mib of a torch model, context and slots of a llama.cpp model"
        )
    return notes


def _size(name: str, text: str) -> int:
    return memory_bytes(int(text) if text.isascii() and text.isdecimal() and len(text) < 17 else text, name)


def _count(name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 16 and int(text) >= 1):
        raise PolicyProblem(name, f"must be a whole number of at least 1, not {shown(text)}")
    return int(text)


def _checked(name: str, changes: dict[str, Any]) -> dict[str, Any]:
    """The changes, if a policy takes them. Raises PolicyProblem with the flag's name."""
    try:
        merged(Policy(), changes)
    except PolicyProblem as problem:
        raise PolicyProblem(name, problem.message) from None
    return changes
