"""The command line as it was typed: for the record of what a measurement was, and for refusing what is not heeded."""

import shlex
from typing import Any

import typer

_NOT_TOLD = frozenset({"home", "as_json", "resume", "redo", "to"})


def told(context: typer.Context) -> dict[str, Any]:
    """The parameters that stood in the command line, by name, with their values."""
    found = {}
    for name, value in context.params.items():
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            found[name] = value
    return found


def option_of(context: typer.Context, name: str) -> str:
    """`--restart-command`; for an argument its name."""
    for parameter in context.command.params:
        if parameter.name == name:
            return next((each for each in parameter.opts if each.startswith("--")), name)
    return name


def command(context: typer.Context) -> str:
    """The whole command that does the same again, but for where it reads and writes. A key is named in it as it was
    typed: `env:NAME`, `file:PATH`."""
    given = told(context)
    words: list[str] = []
    for parameter in context.command.params:
        if parameter.name not in given or parameter.name in _NOT_TOLD:
            continue
        value = given[parameter.name]
        values = list(value) if isinstance(value, list | tuple) else [value]
        longs = [each for each in parameter.opts if each.startswith("--")]
        if not longs:
            words = [*words, *(str(each) for each in values)]
        elif isinstance(value, bool):
            off = [each for each in parameter.secondary_opts if each.startswith("--")]
            words.append(longs[0] if value or not off else off[0])
        else:
            for each in values:
                words += [longs[0], str(each)]
    return shlex.join([*context.command_path.split(), *words])
