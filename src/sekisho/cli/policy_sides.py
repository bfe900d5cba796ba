"""Policies by the names that people have for them: `current`, a preset, `baseline`, `version:3`, FIELD=VALUE,…"""

from typing import TYPE_CHECKING, Any, Final

from sekisho.cli.failure import USAGE, CommandFailed
from sekisho.cli.options import settings_of
from sekisho.cli.output import Output
from sekisho.cli.policy_fields import nested
from sekisho.cli.quantities import names
from sekisho.cli.tuning_site import Site

if TYPE_CHECKING:
    from sekisho.control.policy import Policy
    from sekisho.engines.config import ModelConfig
    from sekisho.ops.home import Home

AUTO: Final = "auto"
_VERSION: Final = "version:"


def by_size(out: Output, place: "Home", model: str | None) -> str:
    """The preset for the size of the model, or of all local models where they agree. Raises CommandFailed."""
    settings = settings_of(place)
    if model is not None:
        named = settings.model(model)
        if named is None:
            raise CommandFailed(f"{model}: no such model", hint="sekisho model list", exit_code=USAGE)
        return _by_size(out, named)
    chosen = {each.name: _by_size(out, each) for each in settings.models if each.has_worker and not each.embeddings}
    if len(set(chosen.values())) != 1:
        told = ", ".join(f"{name}: {preset}" for name, preset in chosen.items()) or "no model runs here"
        raise CommandFailed(f"--preset auto: {told}", hint="name one with --model", exit_code=USAGE)
    return next(iter(chosen.values()))


def _by_size(out: Output, own: "ModelConfig") -> str:
    from sekisho.control.presets import by_size as preset_of
    from sekisho.engines.parameter_count import parameters

    count = parameters(own)
    if isinstance(count, str):
        raise CommandFailed(f"--preset auto: {count}", exit_code=USAGE)
    preset = preset_of(count).name
    out.say("preset_by_size", model=own.name, parameters=_counted(count), preset=preset)
    return preset


def _counted(count: int) -> str:
    """`1.24B`, `135M`."""
    return f"{count / 1e9:.3g}B" if count >= 1e9 else f"{count / 1e6:.3g}M"


def policy_of(site: Site, text: str) -> "tuple[Policy, frozenset[str]]":
    """And the fields that were named one by one. Raises CommandFailed."""
    from sekisho.control.policy_changes import PolicyProblem, merged
    from sekisho.control.presets import BASELINE, PRESETS

    if text.startswith(_VERSION):
        number = text.removeprefix(_VERSION)
        if not number.isdecimal():
            raise CommandFailed(f"{text!r}: a version is a number", hint="sekisho policy versions", exit_code=USAGE)
        return site.policies.version(int(number)), frozenset()
    current = site.policies.current
    if text == "current":
        return current, frozenset()
    presets = {**PRESETS, "baseline": BASELINE}
    name = _by_size(site.out, site.own) if text == AUTO else text
    if name in presets:
        return merged(current, presets[name].changes), frozenset()
    if "=" not in text:
        hint = f"current, {', '.join(presets)}, {AUTO}, version:3 or FIELD=VALUE,FIELD=VALUE"
        raise CommandFailed(f"{text!r} names no policy", hint=hint, exit_code=USAGE)
    changes = changes_of(text)
    try:
        return merged(current, changes), frozenset(_dotted(changes))
    except PolicyProblem as error:
        raise CommandFailed(f"{text}: {error}", exit_code=USAGE) from error


def changes_of(text: str) -> dict[str, Any]:
    """`kv.key_type=q4_0,engine.slots=8`. Raises CommandFailed."""
    return nested(names(text))


def _dotted(changes: dict[str, Any]) -> list[str]:
    from sekisho.control.policy_changes import dotted

    return list(dotted(changes))


def check_taken(site: Site, policy: "Policy", named: frozenset[str], text: str) -> set[str]:
    """The fields that come with a mode or a preset and have no effect here, each of which is told. Raises CommandFailed
    where one that was named is among them."""
    from sekisho.control.actuators.base import fields
    from sekisho.control.trial_settings import unsupported

    now, asked = fields(site.policies.current), fields(policy)
    vain = {field: reason for field, reason in unsupported(policy, site.own).items() if asked[field] != now[field]}
    for field in sorted(vain.keys() & named):
        raise CommandFailed(f"{text}: {field}: {vain[field]}", exit_code=USAGE)
    for field, reason in vain.items():
        site.out.say("tuning_no_effect", side=text, field=field, reason=reason)
    return set(vain)
