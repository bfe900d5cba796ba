"""What a command prints: words and tables for people, or JSON on standard output and nothing else beside it."""

import io
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from sekisho.cli import hints
from sekisho.cli.failure import CommandFailed
from sekisho.cli.messages import text

if TYPE_CHECKING:
    from rich.console import Console

PIPE_COLUMNS = 240
_COMMANDS_TO_TERMINALS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def language(environment: Mapping[str, str] | None = None) -> str:
    """`ja` or `en`: SEKISHO_LANG first, then the locale."""
    values = os.environ if environment is None else environment
    for name in ("SEKISHO_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        if values.get(name):
            return "ja" if values[name].lower().startswith("ja") else "en"
    return "en"


def spell_out(*streams: TextIO) -> None:
    """Lets the streams write what their encoding lacks as `\\u…`: a key that was made is shown, whatever the locale."""
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


class Output:
    """One command's voice."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self.language = language()

    def text(self, key: str, **values: object) -> str:
        """A message of the table, in the user's language."""
        return hints.here(text(key, self.language, **values))

    def say(self, key: str, **values: object) -> None:
        """A line for people; nothing in JSON mode."""
        if not self.as_json:
            self.line(self.text(key, **values))

    def line(self, line: str = "", style: str | None = None) -> None:
        """A line as it is, never wrapped: it may be there to be copied."""
        if not self.as_json:
            self.console().print(visible(line), style=style, markup=False, highlight=False, soft_wrap=True)

    def warn(self, line: str) -> None:
        """To standard error, in both modes."""
        self.console(error=True).print(
            visible(f"{self.text('warning')}: {line}"), style="yellow", markup=False, highlight=False, soft_wrap=True
        )

    def json(self, value: Any) -> None:
        """The machine's answer; nothing in the other mode."""
        if self.as_json:
            sys.stdout.write(json.dumps(plain(value), ensure_ascii=False) + "\n")
            sys.stdout.flush()

    def columns(self, *keys: str) -> list[str]:
        """Headings from the message table."""
        return [self.text(key) for key in keys]

    def table(
        self, columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None, unbroken: int = 1
    ) -> None:
        """Cells are shown as they are; None is a dash. The first `unbroken` columns are there to be copied."""
        if self.as_json:
            return
        from rich.measure import Measurement
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for index, column in enumerate(columns):
            table.add_column(
                Text(column), style="bold" if index == 0 else None, no_wrap=index < unbroken, overflow="fold"
            )
        for row in rows:
            table.add_row(*(Text("—" if cell is None else visible(str(cell))) for cell in row))
        if title is not None:
            self.line(title)
        console = self.console()
        measured = Measurement.get(console, console.options.update(width=PIPE_COLUMNS), table)
        needed = measured.minimum if unbroken < len(columns) else measured.maximum  # a word is the least to Rich
        if needed > console.width:  # better a line that the terminal folds than an id cut short
            console.width = needed
        console.print(table)

    def failure(self, failure: CommandFailed) -> None:
        """In JSON mode an object with `error` on standard output; else words on standard error."""
        message, hint = hints.here(failure.message), hints.here(failure.hint) if failure.hint else None
        if self.as_json:
            error = {"message": message, "hint": hint, "exit_code": failure.exit_code}
            self.json({"error": {**error, **failure.details}})
            return
        console = self.console(error=True)
        for line in visible(f"{self.text('error')}: {message}").splitlines():
            console.print(line, style="red", markup=False, highlight=False, soft_wrap=True)
        if hint:
            console.print(f"{self.text('next')}: {hint}", markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def waiting(self, key: str) -> Iterator[None]:
        """A spinner on standard error while the body runs, for people at a terminal."""
        if self.as_json or not sys.stderr.isatty():
            yield
            return
        with self.console(error=True).status(self.text(key)):
            yield

    def console(self, *, error: bool = False) -> "Console":
        from rich.console import Console

        stream = sys.stderr if error else sys.stdout
        # A pipe has no width: a folded line would be of no use to what reads it.
        width = None if stream.isatty() or os.environ.get("COLUMNS") else PIPE_COLUMNS
        return Console(file=stream, width=width)


def visible(text: str) -> str:
    """What would steer a terminal or turn letters around, as `\\x1b`: prompts and names come from strangers."""
    return _COMMANDS_TO_TERMINALS.sub(lambda found: ascii(found[0])[1:-1], text)


def plain(value: Any) -> Any:
    """Any value of the house as JSON types."""
    import msgspec

    return msgspec.to_builtins(value, enc_hook=str)
