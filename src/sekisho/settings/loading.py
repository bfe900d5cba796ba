"""From the file and the environment to `Settings`."""

import os
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from sekisho.engines.profiles import PROFILES
from sekisho.guard import desk_config
from sekisho.ops.home import Home
from sekisho.settings.checks import check
from sekisho.settings.document import Document, SettingsError, SettingsProblem, read_document
from sekisho.settings.model import VERSION, Settings
from sekisho.settings.shape import fit

Migration = Callable[[dict[str, Any]], list[str]]
"""Brings a file's values from one version to the next, in place; answers with what it changed, in words."""

MIGRATIONS: dict[int, Migration] = {}
"""By the version that a file has. Version 1 is the first, so there is nothing to bring forward yet."""


def load(
    home: Home, environment: Mapping[str, str] | None = None, notify: Callable[[str], None] | None = None
) -> Settings:
    """Reads the home's settings. No file means the defaults. Raises SettingsError; `notify` hears of migrations."""
    values = os.environ if environment is None else environment
    source = str(home.settings_file)
    try:
        text = home.settings_file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        text = ""
    except UnicodeDecodeError as error:
        raise SettingsError(SettingsProblem("not UTF-8 text", hint="save it as UTF-8", source=source)) from error
    except OSError as error:
        raise SettingsError(SettingsProblem(f"cannot be read: {error.strerror}", source=source)) from error
    return with_environment(anchored(load_text(text, source, notify, values), home.path), values)


def load_text(
    text: str,
    source: str = "sekisho.yaml",
    notify: Callable[[str], None] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """Reads settings from text and, for the runtime profile, from `environment`. Raises SettingsError with all
    problems found."""
    document = read_document(text, source)
    if not isinstance(document.value, dict):
        document.problem((), "expected `name: value` lines at the top of the file")
        raise SettingsError(*document.problems)
    for change in migrate(document, MIGRATIONS, VERSION):
        if notify is not None:
            notify(f"{source}: {change}")
    fill_from_profile(document, environment or {})
    settings = fit(document, document.value, Settings)
    if settings is not msgspec.UNSET:
        check(document, settings)
    if document.problems:
        raise SettingsError(*document.problems)
    assert isinstance(settings, Settings)
    return settings


def migrate(document: Document, migrations: Mapping[int, Migration], newest: int) -> list[str]:
    """Brings the document's values to the newest version, in memory. Answers with the changes, in words."""
    version = document.value.get("version", newest)
    if not isinstance(version, int) or isinstance(version, bool):
        return []  # `fit` complains about the type
    if version > newest:
        message = f"made for a newer Sekisho (version {version}; this one knows {newest})"
        document.problem(("version",), message, "update Sekisho, or use the settings of this version")
        raise SettingsError(*document.problems)
    changes: list[str] = []
    while version < newest:
        if version not in migrations:
            document.problem(("version",), f"there is no version {version}", f"write `version: {newest}`")
            raise SettingsError(*document.problems)
        changes += migrations[version](document.value)
        version += 1
        document.value["version"] = version
    return changes


def fill_from_profile(document: Document, environment: Mapping[str, str]) -> None:
    """Lays the runtime profile (SEKISHO_PROFILE, else `profile`) and SEKISHO_CONTEXT and SEKISHO_DEVICES under the
    lines of local models, in memory. The built-in model keeps its own context: it was trained for it."""
    name = environment.get("SEKISHO_PROFILE") or document.value.get("profile")
    gaps: dict[str, Any] = {}
    if name is not None:
        if not isinstance(name, str) or name not in PROFILES:
            valid = ", ".join(PROFILES)
            document.problem(("profile",), f"there is no runtime profile {name!r}", f"one of {valid}")
            return
        gaps |= {field: value for field, value in msgspec.structs.asdict(PROFILES[name]).items() if value is not None}
    if context := environment.get("SEKISHO_CONTEXT"):
        if not context.isascii() or not context.isdigit() or int(context) < 1:
            raise SettingsError(SettingsProblem("must be a number of tokens", "SEKISHO_CONTEXT", source="environment"))
        gaps["context"] = int(context)
    if devices := environment.get("SEKISHO_DEVICES"):
        gaps["devices"] = devices
    models = document.value.get("models")
    for model in models if gaps and isinstance(models, list) else []:
        if isinstance(model, dict) and model.get("engine", "llama_cpp") == "llama_cpp":
            if model.get("path") == "builtin":
                continue
            for field, value in gaps.items():
                model.setdefault(field, value)


def anchored(settings: Settings, folder: Path) -> Settings:
    """Files named in the settings, as absolute paths: `~` is the user's folder, relative ones lie beside the file."""

    def absolute(value: str | None) -> str | None:
        return None if value is None else str(folder / Path(value).expanduser())

    models = tuple(
        msgspec.structs.replace(
            model,
            path=model.path if model.path == "builtin" else absolute(model.path),
            mmproj=absolute(model.mmproj),
            chat_template=absolute(model.chat_template),
            api_key_file=absolute(model.api_key_file),
        )
        for model in settings.models
    )
    escalation = desk_config.anchored(settings.guard.escalation, absolute)
    guard = msgspec.structs.replace(settings.guard, escalation=escalation)
    anchor = msgspec.structs.replace(settings.audit.anchor, folder=absolute(settings.audit.anchor.folder))
    audit = msgspec.structs.replace(settings.audit, anchor=anchor)
    return msgspec.structs.replace(settings, models=models, guard=guard, audit=audit)


def with_environment(settings: Settings, environment: Mapping[str, str]) -> Settings:
    """Lays DATABASE_URL, SEKISHO_HOST and SEKISHO_PORT over the settings. Raises SettingsError."""
    gateway, store = settings.gateway, settings.store
    if host := environment.get("SEKISHO_HOST"):
        gateway = msgspec.structs.replace(gateway, host=host)
    if port := environment.get("SEKISHO_PORT"):
        if not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65_535:
            problem = SettingsProblem("must be a number from 1 to 65535", "SEKISHO_PORT", source="environment")
            raise SettingsError(problem)
        gateway = msgspec.structs.replace(gateway, port=int(port))
    if url := environment.get("DATABASE_URL"):
        store = msgspec.structs.replace(store, url=url)
    return msgspec.structs.replace(settings, gateway=gateway, store=store)


def default_text() -> str:
    """A commented `sekisho.yaml` that says what the defaults say."""
    return resources.files("sekisho.settings").joinpath("template.yaml").read_text(encoding="utf-8")
