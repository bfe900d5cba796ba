"""Edits of `sekisho.yaml` as text: what the reader wrote, comments and order, stays as it is."""

from pathlib import Path
from typing import Any

import msgspec
import yaml

from sekisho.engines.config import ModelConfig
from sekisho.ops.home import write_atomically
from sekisho.settings.document import SettingsError, SettingsProblem
from sekisho.settings.loading import load_text
from sekisho.settings.model import BUILTIN_MODEL

ITEM_INDENT = "  "


def add_model(text: str, model: ModelConfig, source: str = "sekisho.yaml") -> str:
    """The text with the model added (or, where one of that name stands already, that entry replaced).

    Raises SettingsError when the text is not valid before or after, or is laid out in a way that cannot be edited.
    """
    before = load_text(text, source)
    newline = "\r\n" if "\r\n" in text else "\n"
    if any(known.name == model.name for known in before.models) and not _is_default_list(text):
        raise SettingsError(SettingsProblem(f"a model {model.name!r} is there already", "models", source=source))
    added = _insert(text, model, newline)
    kept = tuple(known for known in before.models if known.name != model.name)
    try:
        after = load_text(added, source)
    except SettingsError as error:
        raise _by_hand(model, source) from error
    if after != msgspec.structs.replace(before, models=(*kept, model)):
        raise _by_hand(model, source)
    return added


def write_text(path: Path, text: str) -> None:
    """Checks the text and replaces the file in one step, readable by its owner alone. Raises SettingsError, OSError."""
    load_text(text, str(path))
    write_atomically(path, text.encode("utf-8"))


def entry(model: ModelConfig) -> dict[str, Any]:
    """The model's fields, without what is default anyway."""
    fields = {}
    for field in msgspec.structs.fields(ModelConfig):
        value = getattr(model, field.name)
        if value is not None and (field.required or field.name == "path" or value != _default(field)):
            fields[field.name] = value
    return fields


def _default(field: msgspec.structs.FieldInfo) -> Any:
    return field.default_factory() if field.default is msgspec.NODEFAULT else field.default


def entry_lines(model: ModelConfig) -> list[str]:
    """The entry as lines of a YAML list."""
    lines = [f"  {name}: {_inline(value)}" for name, value in entry(model).items()]
    return [f"- {lines[0].lstrip()}", *lines[1:]]


def _inline(value: Any) -> str:
    """YAML on one line, fit for the inside of brackets too."""
    dumped = yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=1_000_000).rstrip("\n")
    if not dumped.isprintable():  # line breaks, of which YAML knows five
        dumped = yaml.safe_dump([value], default_flow_style=True, default_style='"', width=1_000_000).rstrip("\n")
    return dumped[1:-1]


def _models_node(text: str) -> yaml.Node | None:
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode):
        return None
    return next((value for key, value in root.value if key.value == "models"), None)


def _is_default_list(text: str) -> bool:
    return _models_node(text) is None


def _insert(text: str, model: ModelConfig, newline: str) -> str:
    node = _models_node(text)
    if node is None:
        # Naming models switches the built-in default off, so it is written down beside the new one.
        models = [model] if model.name == BUILTIN_MODEL.name else [BUILTIN_MODEL, model]
        body = newline.join(ITEM_INDENT + line for entry in models for line in entry_lines(entry))
        gap = "" if not text or text.endswith("\n") else newline
        return f"{text}{gap}{newline if text.strip() else ''}models:{newline}{body}{newline}"
    if not isinstance(node, yaml.SequenceNode):
        raise _by_hand(model, "sekisho.yaml")
    if node.flow_style:
        end = node.end_mark.index - 1
        body = _inline(entry(model))
        return f"{text[:end].rstrip()}{', ' if node.value else ''}{body}{text[end:]}"
    indent = " " * node.start_mark.column
    position = _line_end(text, _last(node))
    body = newline.join(indent + line for line in entry_lines(model))
    gap = "" if text[:position].endswith("\n") else newline
    return f"{text[:position]}{gap}{body}{newline}{text[position:]}"


def _last(node: yaml.Node) -> yaml.Node:
    """The node whose text ends last. Block nodes end where the next thing begins, past comments: go inside."""
    while isinstance(node, yaml.CollectionNode) and node.value and not node.flow_style:
        inner = node.value[-1]
        node = inner[1] if isinstance(inner, tuple) else inner
    return node


def _line_end(text: str, node: yaml.Node) -> int:
    end = int(node.end_mark.index)
    if end > 0 and text[end - 1] == "\n":
        return end
    newline = text.find("\n", end)
    return len(text) if newline < 0 else newline + 1


def _by_hand(model: ModelConfig, source: str) -> SettingsError:
    lines = "\n".join(ITEM_INDENT + line for line in entry_lines(model))
    return SettingsError(
        SettingsProblem("laid out in a way that cannot be edited safely", "models", f"add by hand:\n{lines}", source)
    )
