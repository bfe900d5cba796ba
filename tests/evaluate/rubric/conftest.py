"""The browser of the console's tests, for the rating page."""

import importlib.util
from pathlib import Path

_FILE = Path(__file__).parents[2] / "console" / "conftest.py"
_SPEC = importlib.util.spec_from_file_location("browser_of_the_console", _FILE)
assert _SPEC is not None
assert _SPEC.loader is not None
_BROWSER = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_BROWSER)

chromium = _BROWSER.chromium
open_page = _BROWSER.open_page
page = _BROWSER.page
