"""What types cannot say: ranges, networks, addresses, names that must point at something."""

import ipaddress
import re
import zoneinfo
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from sekisho.engines.config import ModelConfig
from sekisho.guard import desk_config
from sekisho.kv.policy import PolicyError, from_plain
from sekisho.settings.document import Document, Path
from sekisho.settings.model import Settings
from sekisho.settings.shape import SECRET_ADVICE, SECRET_NAME, closest

NAME = re.compile(r"[^\s\x00-\x1f\x7f]{1,200}")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
DATABASE_SCHEMES = ("sqlite", "sqlite+aiosqlite", "postgres", "postgresql", "postgresql+asyncpg")

Complaint = Callable[..., None]


def check(document: Document, settings: Settings) -> None:
    """Notes every problem of meaning in the document. Does not look at disk or network: that is `sekisho doctor`."""
    _check_gateway(document, settings)
    _check_store(document, settings)
    _check_guard(document, settings)
    _in_range(document, ("logs", "max_bytes"), settings.logs.max_bytes, low=100_000)
    _in_range(document, ("logs", "keep"), settings.logs.keep, low=0, high=1000)
    _check_control(document, settings)
    if not settings.models:
        document.problem(("models",), "no model", "remove the line to get the built-in `sekisho-mini`")
    for index, model in enumerate(settings.models):
        _check_model(document, model, ("models", index))
    _check_names(document, settings)


def _check_gateway(document: Document, settings: Settings) -> None:
    gateway, here = settings.gateway, ("gateway",)
    _in_range(document, (*here, "port"), gateway.port, low=1, high=65_535)
    if not re.fullmatch(r"[A-Za-z0-9._:%-]+", gateway.host):
        document.problem((*here, "host"), "not a host name or address", "127.0.0.1 is this machine only, 0.0.0.0 all")
    if gateway.public_url is not None:
        _check_web_address(document, (*here, "public_url"), gateway.public_url)
    for field in ("allow_networks", "trusted_proxies"):
        for index, network in enumerate(getattr(gateway, field)):
            _check_network(document, (*here, field, index), network)
    for field in ("body_limit_bytes", "queue_limit"):
        _in_range(document, (*here, field), getattr(gateway, field), low=1)
    for field in ("body_timeout_s", "queue_timeout_s", "keepalive_s"):
        _in_range(document, (*here, field), getattr(gateway, field), low=0, above=True)
    for field in ("drain_timeout_s", "restart_wait_s"):
        _in_range(document, (*here, field), getattr(gateway, field), low=0)
    for index, origin in enumerate(gateway.cors_origins):
        parts = urlsplit(origin)
        if origin != "*" and (parts.scheme not in ("http", "https") or not parts.netloc or parts.path):
            document.problem((*here, "cors_origins", index), "not an origin", "as in https://chat.example.com, or *")
    for name, price in gateway.prices.items():
        for field in ("input_per_million", "output_per_million"):
            _in_range(document, (*here, "prices", name, field), getattr(price, field), low=0)
    if not re.fullmatch(r"[A-Z]{3}", gateway.currency):
        document.problem((*here, "currency"), "not a currency code", "three capital letters, as in USD or JPY")


def _check_store(document: Document, settings: Settings) -> None:
    url, path = settings.store.url, ("store", "url")
    _in_range(document, ("store", "responses_ttl_days"), settings.store.responses_ttl_days, low=0, above=True)
    if url is None:
        return
    parts = _split(document, path, url)
    if parts is None:
        return
    if parts.scheme not in DATABASE_SCHEMES:
        document.problem(path, "not a database address", "sqlite:///file or postgresql://user@host/name")
    elif parts.password:
        document.problem(path, "holds a password", "give the whole address in the environment as DATABASE_URL instead")


def _check_guard(document: Document, settings: Settings) -> None:
    guard, here = settings.guard, ("guard",)
    _in_range(document, (*here, "hold_back_chars"), guard.hold_back_chars, low=16, high=100_000)
    _in_range(document, (*here, "deadline_s"), guard.deadline_s, low=0, above=True)
    for index, language in enumerate(guard.languages):
        if language not in ("ja", "en"):
            document.problem((*here, "languages", index), f"{language!r} cannot be judged here", "ja and en can")
    if guard.model is not None:
        if settings.model(guard.model.model) is None:
            names = [model.name for model in settings.models]
            path: Path = (*here, "model", "model")
            document.problem(path, f"there is no model {guard.model.model!r}", closest(guard.model.model, names))
        if guard.model.deadline_s >= guard.deadline_s:
            document.problem((*here, "model", "deadline_s"), "must be below `guard.deadline_s`")
    for fault in desk_config.faults(guard.escalation):
        document.problem((*here, "escalation", *fault.path), fault.message)


def _check_control(document: Document, settings: Settings) -> None:
    control, here = settings.control, ("control",)
    _in_range(document, (*here, "port"), control.port, low=0, high=65_535)
    _in_range(document, (*here, "window_s"), control.window_s, low=1, high=3600)
    for field in ("fast_s", "middle_s", "slow_s"):
        _in_range(document, (*here, "loops", field), getattr(control.loops, field), low=0.1, high=3600)
    quality, place = control.quality, (*here, "quality")
    _in_range(document, (*place, "light_every_h"), quality.light_every_h, low=0.1, high=168)
    if not re.fullmatch(r"(?:[01]\d|2[0-3]):[0-5]\d", quality.full_at):
        document.problem((*place, "full_at"), "not a time of day", 'as in "06:00"')
    if quality.zone is not None and not _is_zone(quality.zone):
        document.problem((*place, "zone"), "not a time zone", "as in Asia/Tokyo")
    if quality.step_back_after is not None:
        _in_range(document, (*place, "step_back_after"), quality.step_back_after, low=1, high=1000)
    for index, origin in enumerate(control.cors_origins):
        parts = urlsplit(origin)
        if parts.scheme not in ("http", "https") or not parts.netloc or parts.path:
            document.problem((*here, "cors_origins", index), "not an origin", "as in https://chat.example.com")
    if control.webhook_url is not None:
        _check_web_address(document, (*here, "webhook_url"), control.webhook_url)
    if control.webhook_key_env is not None and not VARIABLE.fullmatch(control.webhook_key_env):
        document.problem((*here, "webhook_key_env"), "not the name of a variable", "the key itself stays out of here")


def _is_zone(name: str) -> bool:
    try:
        zoneinfo.ZoneInfo(name)
    except (ValueError, OSError, zoneinfo.ZoneInfoNotFoundError):
        return False
    return True


def _check_model(document: Document, model: ModelConfig, here: Path) -> None:
    if not NAME.fullmatch(model.name):
        document.problem((*here, "name"), "not a name", "1 to 200 characters without spaces")
    for field in ("context", "slots"):
        _in_range(document, (*here, field), getattr(model, field), low=1)
    _in_range(document, (*here, "gpu_layers"), model.gpu_layers, low=-1)
    if model.threads is not None:
        _in_range(document, (*here, "threads"), model.threads, low=1)
    for field in ("connect_timeout_s", "first_byte_timeout_s", "idle_timeout_s"):
        _in_range(document, (*here, field), getattr(model, field), low=0, above=True)
    for name, value in model.options.items():
        if SECRET_NAME.search(name) and isinstance(value, str):
            document.problem((*here, "options", name), "looks like a secret", SECRET_ADVICE, at_key=True)
    if model.engine == "llama_cpp":
        if not model.path:
            document.problem(here, "`path` is missing", "a GGUF file, or `builtin` for the built-in model")
        if model.url is not None:
            document.problem(
                (*here, "url"), "is for the engine `openai_http`", "add `engine: openai_http`", at_key=True
            )
    if model.engine == "torch":
        _check_torch(document, model, here)
    else:
        for field in ("kv", "kv_limit_mib"):
            if getattr(model, field) is not None:
                document.problem((*here, field), "is for the engine `torch`", "remove this line", at_key=True)
    if model.engine == "openai_http":
        _check_upstream(document, model, here)


def _check_torch(document: Document, model: ModelConfig, here: Path) -> None:
    if not model.path:
        document.problem(here, "`path` is missing", "the folder of the model, or a GGUF file")
    if model.url is not None:
        document.problem((*here, "url"), "is for the engine `openai_http`", "remove this line", at_key=True)
    if model.kv_limit_mib is not None:
        _in_range(document, (*here, "kv_limit_mib"), model.kv_limit_mib, low=0, above=True)
    try:
        from_plain(model.kv or {})
    except PolicyError as error:
        document.problem((*here, "kv", *error.field.split(".")), error.fault)


def _check_upstream(document: Document, model: ModelConfig, here: Path) -> None:
    if model.path is not None:
        document.problem((*here, "path"), "is for engines that run here", "remove this line", at_key=True)
    if not model.url:
        document.problem(here, "`url` is missing", "the engine's address, as in http://127.0.0.1:1234/v1")
    elif _check_web_address(document, (*here, "url"), model.url) and not urlsplit(model.url).path.endswith("/v1"):
        document.problem((*here, "url"), "must end in /v1", f"did you mean `{model.url.rstrip('/')}/v1`?")
    if model.api_key_env is not None and not VARIABLE.fullmatch(model.api_key_env):
        advice = "write the name of an environment variable, as in UPSTREAM_KEY, not the key itself"
        document.problem((*here, "api_key_env"), "not the name of a variable", advice)
    if model.api_key_env is not None and model.api_key_file is not None:
        document.problem((*here, "api_key_file"), "`api_key_env` is set as well", "keep one of the two", at_key=True)


def _check_names(document: Document, settings: Settings) -> None:
    seen: dict[str, int] = {}
    for index, model in enumerate(settings.models):
        if model.name in seen:
            message = f"models[{seen[model.name]}] has the name {model.name!r} already"
            document.problem(("models", index, "name"), message, "names must differ")
        seen.setdefault(model.name, index)
    names = list(seen)
    for alias, target in settings.aliases.items():
        if alias in seen:
            document.problem(("aliases", alias), "is the name of a model already", "choose another one", at_key=True)
        if target not in seen:
            document.problem(("aliases", alias), f"there is no model {target!r}", closest(target, names))
    for name in settings.gateway.prices:
        if name not in seen:
            path = ("gateway", "prices", name)
            document.problem(path, f"there is no model {name!r}", closest(name, names), at_key=True)
    default = settings.default_model
    if default is not None and default not in seen and default not in settings.aliases:
        document.problem(("default_model",), f"there is no model {default!r}", closest(default, names))


def _in_range(
    document: Document, path: Path, value: float, *, low: float, high: float | None = None, above: bool = False
) -> None:
    if value != value or value in (float("inf"), float("-inf")):
        document.problem(path, "must be an ordinary number")
    elif value < low or (above and value == low):
        document.problem(path, f"must be {'above' if above else 'at least'} {low:g}, is {value:g}")
    elif high is not None and value > high:
        document.problem(path, f"must be at most {high:g}, is {value:g}")


def _check_network(document: Document, path: Path, network: str) -> None:
    try:
        ipaddress.ip_network(network)
    except ValueError:
        document.problem(path, f"{network!r} is not a network", _network_hint(network))


def _network_hint(network: str) -> str:
    try:
        return f"did you mean `{ipaddress.ip_network(network, strict=False)}`?"
    except ValueError:
        return "as in 192.168.1.0/24 or fd00::/8"


def _check_web_address(document: Document, path: Path, url: str) -> bool:
    parts = _split(document, path, url)
    if parts is None:
        return False
    if parts.scheme not in ("http", "https") or not parts.hostname:
        document.problem(path, "not a web address", "as in https://llm.example.com")
        return False
    if parts.username or parts.password:
        document.problem(path, "holds a user name or password", SECRET_ADVICE)
        return False
    return True


def _split(document: Document, path: Path, url: str) -> Any:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  # reading it is the check: a port that is no number raises
    except ValueError as error:
        document.problem(path, f"not an address: {error}")
        return None
    return parts
