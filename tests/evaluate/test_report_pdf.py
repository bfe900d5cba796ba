"""The report's print by a browser that is installed here, and without one."""

import stat
import sys
import time
from pathlib import Path

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
        ("sleep 60 2>/dev/null & echo $! > pid; wait", "not ready after 1 s"),
    ],
)
def test_a_browser_that_fails_leaves_no_file(tmp_path: Path, script: str, words: str) -> None:
    """An error, silence, something that is no PDF, and a hang end with a reason; a hanging browser's children end with
    it, and no half file is left."""
    browser = tmp_path / "browser"
    browser.write_text(f"#!/bin/sh\ncd {tmp_path}\n{script}\n")
    browser.chmod(browser.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "r.html").write_text("x")
    with pytest.raises(PdfUnavailable, match=words):
        print_pdf(tmp_path / "r.html", tmp_path / "r.pdf", "en", browser=browser, limit_s=1)
    assert not (tmp_path / "r.pdf").exists()
    if (tmp_path / "pid").exists():
        assert ended(int((tmp_path / "pid").read_text()))


def ended(pid: int) -> bool:
    """Whether a process is gone, or dead and only not yet collected, within some seconds."""
    for _ in range(100):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False
