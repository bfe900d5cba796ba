"""Opens a link in the browser of this machine without showing it to the machine's other users."""

import os
import sys
import tempfile
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_PAGE = """<!doctype html>
<meta charset="utf-8">
<meta http-equiv="refresh" content="0; url={link}">
<a href="{link}">{link}</a>
"""


@contextmanager
def opened_in_browser(wanted: bool) -> Iterator[Callable[[str], None]]:
    """A function that opens a link; it does nothing where there is no screen. What it needs is removed at the end.

    A browser gets its link as an argument, and arguments are seen by everybody on the machine. So it gets the name of
    a file instead, which its owner alone can read, and which leads on.
    """
    if not wanted or not _has_screen():
        yield lambda link: None
        return
    with tempfile.TemporaryDirectory(prefix="sekisho-") as folder:  # 0700
        file = Path(folder, "rate.html")

        def open_link(link: str) -> None:
            file.write_text(_PAGE.format(link=link), encoding="utf-8")
            webbrowser.open(file.as_uri())

        yield open_link


def _has_screen() -> bool:
    """Without one a text browser would take over the terminal."""
    return sys.platform in ("win32", "darwin") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
