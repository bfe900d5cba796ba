"""Lemonade's options of a model: which of them a policy decides, by the model's recipe."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from sekisho.control.actuators.base import Wanted, answers, joined, whole_mib
from sekisho.control.base import Applied
from sekisho.control.policy import Policy
from sekisho.control.policy_changes import kv_types

LABEL: Final = "Lemonade"
_LLAMA_CPP: Final = "llamacpp"
# Flags of llama-server that a policy decides, by every name that they have.
_ALIASES: Final = {
    "-ctk": ("-ctk", "--cache-type-k"),
    "-ctv": ("-ctv", "--cache-type-v"),
    "-np": ("-np", "--parallel"),
    "-t": ("-t", "--threads"),
    "--cache-ram": ("-cram", "--cache-ram"),
    "--spec-type": ("--spec-type",),
}
_CANONICAL: Final = {alias: name for name, aliases in _ALIASES.items() for alias in aliases}
_DEFAULTS: Final = {"-ctk": "f16", "-ctv": "f16", "--cache-ram": "8192", "--spec-type": "none"}
_NOT_BY_IMPORTANCE: Final = "keeps its cache in one type and drops no token"
MISSING: Final[Mapping[str, str]] = {
    "kv": _NOT_BY_IMPORTANCE,
    "io.enable_iobinding": "has no option for it: its engines bind what they need themselves",
    "io.dml_pool_bytes": "has no option for a pool on the device",
    "io.host_pool_bytes": "has no option for a pool in host memory",
    "scheduler": "places a model by its recipe: each phase has no option of its own",
}
# What a recipe other than llama.cpp's cannot set. `ctx_size` all of them have.
_RECIPE: Final = "has no option for it with the recipe {recipe}; llamacpp has"
_ON_GPU: Final = ("amd_gpu", "nvidia_gpu", "metal")
_DEVICES: Final = ("scheduler.prefill_device", "scheduler.decode_device")
_PLACES: Final = {"hybrid": ("gpu", "npu"), "gpu_only": ("gpu",), "npu_only": ("npu",)}


class Loaded(msgspec.Struct, frozen=True):
    """A model as lemond has it. `options`: in force now; `saved`: those of them that are the model's own. `device`:
    where it runs, empty while it is not loaded. `backends`: of the recipe on this machine, each with its devices."""

    recipe: str
    options: dict[str, Any]
    saved: dict[str, Any]
    device: str
    backends: dict[str, tuple[str, ...]]


def target(policy: Policy, loaded: Loaded) -> dict[str, Any]:
    """The options that the policy asks for; others stay."""
    options, engine = dict(loaded.options), policy.engine
    if loaded.recipe == _LLAMA_CPP:
        options["llamacpp_args"] = with_flags(str(options.get("llamacpp_args") or ""), _flags(policy))
        if backend := _backend(policy, loaded):
            options["llamacpp_backend"] = backend
    context = engine.context or _context(loaded)
    if context is not None:
        options["ctx_size"] = context * (engine.slots or _slots(loaded))
    return options


def differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The options to send."""
    return {name: value for name, value in new.items() if old.get(name) != value}


def _flags(policy: Policy) -> dict[str, str]:
    """Flags of llama-server for what the policy names."""
    engine, flags = policy.engine, _types(policy)
    if engine.slots is not None:
        flags["-np"] = str(engine.slots)
    if engine.threads is not None:
        flags["-t"] = str(engine.threads)
    if engine.prompt_cache_bytes is not None:
        flags["--cache-ram"] = str(whole_mib(engine.prompt_cache_bytes))
    if engine.speculation is not None:
        flags["--spec-type"] = "ngram-simple" if engine.speculation == "ngram" else "none"
    return flags


def _types(policy: Policy) -> dict[str, str]:
    """Flags for the types of the cache; those that the mode `configured` leaves open stay as lemond has them."""
    keys, values = kv_types(policy)
    flags: dict[str, str] = {"-ctk": keys, "-ctv": values}
    named = {"-ctk": policy.kv.key_type, "-ctv": policy.kv.value_type}
    return {flag: kind for flag, kind in flags.items() if policy.kv.mode != "configured" or named[flag]}


def with_flags(line: str, flags: Mapping[str, str]) -> str:
    """A command line with these flags set; what else stands in it stays, in its order."""
    left = dict(flags)
    words: list[str] = []
    for name, value in _pairs(_split(line)):
        flag = _CANONICAL.get(name)
        if flag is None or flag not in flags:
            words += [name, *value]
        elif flag in left:
            words += [name, left.pop(flag)]
    for flag, wanted in left.items():
        words += [flag, wanted] if _DEFAULTS.get(flag) != wanted else []
    return shlex.join(words)


def flag_of(line: str, flag: str) -> str | None:
    """The value of a flag, the last one where it stands twice; llama-server's default where it does not."""
    found = _DEFAULTS.get(flag)
    for name, value in _pairs(_split(line)):
        if _CANONICAL.get(name) == flag and value:
            found = value[0]
    return found


def _split(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError:  # a quote that does not end
        return line.split()


def _pairs(words: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Each flag with what follows up to the next."""
    pairs: list[tuple[str, list[str]]] = []
    for word in words:
        if (word.startswith("-") and not _is_number(word)) or not pairs:
            name, equals, value = word.partition("=")
            pairs.append((name, [value]) if equals and name in _CANONICAL else (word, []))
        else:
            pairs[-1][1].append(word)
    return pairs


def _is_number(word: str) -> bool:
    return word[1:2].isdigit()


def _slots(loaded: Loaded) -> int:
    """Slots that share the context, `ctx_size`, in equal parts. Without `-np` each may have all of it."""
    told = flag_of(str(loaded.options.get("llamacpp_args") or ""), "-np")
    return int(told) if told and told.isdecimal() else 1


def _context(loaded: Loaded) -> int | None:
    """Tokens of a slot now; None where lemond chooses them."""
    told = loaded.options.get("ctx_size")
    return told // _slots(loaded) if isinstance(told, int) and told > 0 else None


def _backend(policy: Policy, loaded: Loaded) -> str | None:
    """llama.cpp's backend for the placement that is asked for; None where it stays."""
    scheduler = policy.scheduler
    if policy.engine.gpu_layers == 0 or (scheduler.prefill_device, scheduler.decode_device) == ("cpu", "cpu"):
        return "cpu" if "cpu" in loaded.backends else None
    if scheduler.mode != "gpu_only" or loaded.options.get("llamacpp_backend") in _gpu_backends(loaded):
        return None
    return next(iter(_gpu_backends(loaded)), None)


def _gpu_backends(loaded: Loaded) -> list[str]:
    return [name for name, devices in loaded.backends.items() if any(each in _ON_GPU for each in devices)]


def changes(policy: Policy, model: str, loaded: Loaded) -> tuple[Applied, ...]:
    """What `apply` would do to a model with these options."""
    new, own = target(policy, loaded), dict(MISSING)
    wanted: dict[str, Wanted] = {}
    if loaded.recipe == _LLAMA_CPP:
        wanted = _llama_wanted(policy, loaded, new)
    else:
        lacking = _RECIPE.format(recipe=loaded.recipe)
        own |= {"kv.mode": lacking, "kv.key_type": lacking, "kv.value_type": lacking, "engine": lacking}
    if policy.engine.context is not None:
        why = "of all requests at once: context x slots"
        wanted["engine.context"] = Wanted(loaded.options.get("ctx_size"), new["ctx_size"], "swap", why)
    wanted |= _placed(policy, loaded, new)
    return answers(model, LABEL, policy, wanted, own)


def _llama_wanted(policy: Policy, loaded: Loaded, new: Mapping[str, Any]) -> dict[str, Wanted]:
    old_line, line = str(loaded.options.get("llamacpp_args") or ""), str(new["llamacpp_args"])

    def both(*flags: str) -> Wanted:
        was, value = ("/".join(flag_of(each, flag) or "" for flag in flags) or None for each in (old_line, line))
        return Wanted(was, value, "swap")

    engine, wanted = policy.engine, {"kv.mode": both("-ctk", "-ctv")}
    named = {
        "kv.key_type": ("-ctk", policy.kv.key_type),
        "kv.value_type": ("-ctv", policy.kv.value_type),
        "engine.slots": ("-np", engine.slots),
        "engine.threads": ("-t", engine.threads),
        "engine.prompt_cache_bytes": ("--cache-ram", engine.prompt_cache_bytes),
        "engine.speculation": ("--spec-type", engine.speculation),
    }
    wanted |= {field: both(flag) for field, (flag, value) in named.items() if value is not None}
    if engine.gpu_layers is not None:
        wanted["engine.gpu_layers"] = _layers(engine.gpu_layers, loaded, new)
    return wanted


def _layers(layers: int, loaded: Loaded, new: Mapping[str, Any]) -> Wanted:
    """lemond sets `-ngl` itself: all on a card, or with the backend `cpu` none."""
    was, value = loaded.options.get("llamacpp_backend"), new.get("llamacpp_backend")
    if layers == 0 and "cpu" in loaded.backends:
        return Wanted(was, value, "swap")
    if layers == -1 and was in _gpu_backends(loaded):
        return Wanted(was, was, "unchanged")
    reason = f"{LABEL} sets -ngl itself: all layers on the card (scheduler.mode gpu_only), or none with the backend cpu"
    return Wanted(was, layers, "unsupported", reason)


def _placed(policy: Policy, loaded: Loaded, new: Mapping[str, Any]) -> dict[str, Wanted]:
    """Where it shall run. The recipe decides; with llama.cpp's also the backend."""
    scheduler, whole = policy.scheduler, ("scheduler.mode", *_DEVICES)
    both = (scheduler.prefill_device, scheduler.decode_device)
    backend = Wanted(loaded.options.get("llamacpp_backend"), new.get("llamacpp_backend"), "swap")
    if loaded.recipe == _LLAMA_CPP and scheduler.mode == "gpu_only" and backend.value in _gpu_backends(loaded):
        return dict.fromkeys(whole if both == ("dml", "dml") else whole[:1], backend)
    if loaded.recipe == _LLAMA_CPP and both == ("cpu", "cpu") and backend.value == "cpu":
        return dict.fromkeys(_DEVICES, backend)
    if tuple(sorted(loaded.device.split())) == _PLACES[scheduler.mode]:
        return dict.fromkeys(whole, Wanted(loaded.device, loaded.device, "unchanged"))
    if scheduler.mode == "hybrid":
        return {}  # the default, which nobody asked for in particular
    reason = _other_model(scheduler.mode, loaded)
    return dict.fromkeys(whole, Wanted(loaded.device or None, scheduler.mode, "unsupported", reason))


def _other_model(mode: str, loaded: Loaded) -> str:
    makes = {
        "npu_only": "the recipe flm, or ryzenai-llm with a model for the NPU",
        "gpu_only": "the recipe llamacpp with a backend for the card",
    }
    runs = f"it runs on {loaded.device}" if loaded.device else None
    places = f"{LABEL} places a model by its recipe, here {loaded.recipe}"
    return joined(places, runs, f"{mode} needs {makes[mode]}") or ""
