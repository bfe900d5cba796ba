"""The report's print by a browser that is installed here, and without one."""

import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from sekisho.evaluate.definitions import LANGUAGES
from sekisho.evaluate.report.data import ReportData
from sekisho.evaluate.report.page import render
from sekisho.evaluate.report.pdf import PdfUnavailable, find_browser, print_pdf
from sekisho.evaluate.report.signing import seal

BROWSER = find_browser()


@pytest.mark.skipif(BROWSER is None, reason="no Chromium, Chrome or Edge is installed")
def test_printing_gives_the_chosen_language_alone(tmp_path: Path) -> None:
    """The signed file as it is prints in either language, and its outline has that language's headings only."""
    page_file, titles = tmp_path / "レポート report.html", {}
    page_file.write_bytes(seal(render(ReportData(run="r", title=("Title", "題")), "en"), b"k" * 32).encode())
    for language in LANGUAGES:
        pdf = tmp_path / f"{language}.pdf"
        print_pdf(page_file, pdf, language)
        titles[language] = pdf.read_bytes()
    english, japanese = b"(Faults found)", "検出した異常".encode("utf-16-be").hex().upper().encode()
    assert (english in titles["en"], japanese in titles["en"]) == (True, False)
    assert (english in titles["ja"], japanese in titles["ja"]) == (False, True)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["en.pdf", "ja.pdf", "レポート report.html"]


def test_without_a_browser_the_error_says_what_to_do(tmp_path: Path) -> None:
    """Nothing installed is told as such, with the way by hand."""
    assert find_browser(search=str(tmp_path)) is None
    (tmp_path / "r.html").write_text("x")
    with pytest.raises(PdfUnavailable, match="open the report in a browser and print it"):
        print_pdf(tmp_path / "r.html", tmp_path / "r.pdf", "en", browser=tmp_path / "missing")
    with pytest.raises(PdfUnavailable, match="make the report first"):
        print_pdf(tmp_path / "none.html", tmp_path / "r.pdf", "en", browser=Path(sys.executable))


@pytest.mark.skipif(sys.platform == "win32", reason="uses shell scripts as browsers")
@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo trouble >&2; exit 3", "exit code 3: trouble"),
        ("exit 0", "made no PDF"),
        ('for each; do case "$each" in --print-to-pdf=*) echo no > "${each#*=}";; esac; done', "made no PDF"),
    ],
)
def test_a_browser_that_fails_leaves_no_file(tmp_path: Path, script: str, words: str) -> None:
    """An error, silence, and something that is no PDF end with a reason, and no half file is left."""
    with pytest.raises(PdfUnavailable, match=words):
        print_pdf(page(tmp_path), tmp_path / "r.pdf", "en", browser=browser(tmp_path, script))
    assert not (tmp_path / "r.pdf").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="uses shell scripts as browsers")
def test_a_browser_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends with a reason, its children end with it, and no half file is left."""
    told = tmp_path / "pid"

    class Browser(subprocess.Popen[bytes]):
        def communicate(self, *arguments: Any, **options: Any) -> tuple[bytes, bytes]:
            """Its time begins when it hangs, however long its start took."""
            assert within_a_minute(told.exists)
            return super().communicate(*arguments, **options)

    monkeypatch.setattr(subprocess, "Popen", Browser)
    hangs = browser(tmp_path, "sleep 600 2>/dev/null & echo $! > draft; mv draft pid; wait")
    with pytest.raises(PdfUnavailable, match=r"not ready after 0\.2 s"):
        print_pdf(page(tmp_path), tmp_path / "r.pdf", "en", browser=hangs, limit_s=0.2)
    assert not (tmp_path / "r.pdf").exists()
    child = int(told.read_text())
    assert within_a_minute(lambda: ended(child))


def page(folder: Path) -> Path:
    (folder / "r.html").write_text("x")
    return folder / "r.html"


def browser(folder: Path, script: str) -> Path:
    made = folder / "browser"
    made.write_text(f"#!/bin/sh\ncd {folder}\n{script}\n")
    made.chmod(made.stat().st_mode | stat.S_IXUSR)
    return made


def within_a_minute(holds: Callable[[], bool]) -> bool:
    deadline_s = time.monotonic() + 60
    while not (held := holds()) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    return held


def ended(pid: int) -> bool:
    """Whether a process is gone, or dead and only not yet collected."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
