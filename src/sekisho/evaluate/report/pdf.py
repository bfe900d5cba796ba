"""The report as PDF: printed by a browser that is installed here, without a window, network or profile of its own.

PdfUnavailable   no browser, or it made no PDF; the message says what to do instead
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from sekisho.core.errors import ServiceError
from sekisho.evaluate.definitions import Language
from sekisho.ops.process_tree import signal_group

BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "microsoft-edge",
    "microsoft-edge-stable",
    "msedge",
)
LIMIT_S = 90.0
_KILL = 9
_BY_HAND = "or open the report in a browser and print it (A4)"


class PdfUnavailable(ServiceError):
    code = "pdf_unavailable"


def find_browser(search: str | None = None) -> Path | None:
    """A browser of the Chromium family: on `search` (PATH when None), then where the systems install them."""
    for name in BROWSERS:
        found = shutil.which(name, path=search)
        if found:
            return Path(found)
    return None if search is not None else next((path for path in _usual_places() if path.is_file()), None)


def print_pdf(html: Path, pdf: Path, language: Language, browser: Path | None = None, limit_s: float = LIMIT_S) -> None:
    """Prints one language of a report to A4; blocks. The file appears whole or not at all. Raises PdfUnavailable."""
    chosen = browser or find_browser()
    if chosen is None:
        raise PdfUnavailable(f"no Chromium, Chrome or Edge was found: install one, {_BY_HAND}")
    if not html.is_file():
        raise PdfUnavailable(f"{html} is not there: make the report first")
    try:
        with tempfile.TemporaryDirectory(prefix="sekisho-print-", ignore_cleanup_errors=True) as folder:
            draft = Path(folder) / "report.pdf"
            told = _run(_command(chosen, html, draft, language, Path(folder) / "profile"), limit_s)
            made = draft.read_bytes() if draft.is_file() else b""
            if not made.startswith(b"%PDF-") or b"%%EOF" not in made[-1024:]:
                raise PdfUnavailable(f"{chosen.name} made no PDF ({told}): try another browser, {_BY_HAND}")
            _put(made, pdf)
    except OSError as error:
        raise PdfUnavailable(f"the PDF cannot be made: {error.strerror or error}; {_BY_HAND}") from error


def _command(browser: Path, html: Path, pdf: Path, language: Language, profile: Path) -> list[str]:
    command = [
        str(browser),
        "--headless",
        "--disable-gpu",
        "--no-first-run",
        "--no-default-browser-check",
        "--disable-extensions",
        "--disable-background-networking",
        "--disable-sync",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={profile}",
        "--no-pdf-header-footer",
        "--generate-pdf-document-outline",
        f"--print-to-pdf={pdf}",
    ]
    if sys.platform != "win32" and os.geteuid() == 0:
        command.append("--no-sandbox")  # the browser refuses to start as root otherwise
    return [*command, f"{html.absolute().as_uri()}#print-{language}"]


def _run(command: list[str], limit_s: float) -> str:
    """Runs to the end or to the limit, and ends all that it started. The browser's last words, for the error."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        _, said = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        signal_group(process.pid, _KILL)
        process.communicate()
        return f"not ready after {limit_s:g} s"
    lines = [line for line in said.decode("utf-8", "replace").splitlines() if line.strip()]
    last = re.sub(r"[^\x20-\x7e]", "?", lines[-1])[:200] if lines else "it said nothing"
    return f"exit code {process.returncode}: {last}"


def _put(made: bytes, pdf: Path) -> None:
    draft = pdf.with_name(f".{pdf.name}.part")
    draft.write_bytes(made)
    draft.chmod(0o600)  # as open as the run that it is of
    os.replace(draft, pdf)


def _usual_places() -> list[Path]:
    if sys.platform == "darwin":
        names = ("Google Chrome", "Chromium", "Microsoft Edge")
        return [Path(f"/Applications/{name}.app/Contents/MacOS/{name}") for name in names]
    if sys.platform == "win32":
        roots = [os.environ.get(name) for name in ("PROGRAMFILES", "PROGRAMFILES(X86)", "LOCALAPPDATA")]
        programs = (r"Google\Chrome\Application\chrome.exe", r"Microsoft\Edge\Application\msedge.exe")
        return [Path(root) / program for root in roots if root for program in programs]
    return [Path("/opt/google/chrome/chrome"), Path("/opt/microsoft/msedge/msedge"), Path("/snap/bin/chromium")]
