"""The page and its print."""

import html
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_harness import COMMAND, DATA, FIGURES, KEY

from sekisho.evaluate.figures import Figure, Figures, Interval
from sekisho.evaluate.report.data import Approval, EcdfChart, ReportData, Series, ThresholdChange, ThresholdsPart
from sekisho.evaluate.report.page import render
from sekisho.evaluate.report.signing import check, public_key, seal, shown_digest
from sekisho.evaluate.report.text import visible

VOID = {"meta", "input", "br", "hr", "img", "link"}
HOSTILE = (
    '</pre></td></main><script>alert(1)</script><img src=x onerror="alert(1)"><!-- sekisho -->'
    " \u202egnp.exe\u202c \x1b[31m \x00 \ud800 {{ 7*7 }} &lt;b&gt; ' \" "
)


class Page(HTMLParser):
    """A page as its elements: fails on what is not closed in the order in which it was opened."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {"": [], "en": [], "ja": []}
        self.languages = [""]
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
            self.languages.append(dict(attrs).get("id") or "" if tag == "main" else self.languages[-1])

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.languages.pop()

    def handle_data(self, data: str) -> None:
        if not {"style", "title", "desc"} & set(self.open):
            self.texts[self.languages[-1]].append(data)

    def text(self, language: str) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts[language]))

    def count(self, tag: str) -> int:
        return sum(each == tag for each, _ in self.elements)


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(render(DATA))


def test_each_element_is_closed_and_each_link_leads_somewhere(page: Page) -> None:
    """Ids are unique though everything is there twice, and every link of the contents and of the scorecard has its
    target in the same language."""
    ids = Counter(attributes["id"] for _, attributes in page.elements if "id" in attributes)
    assert [each for each, count in ids.items() if count > 1] == []
    links = [attributes["href"] or "" for tag, attributes in page.elements if tag == "a"]
    assert len(links) > 20
    assert [each for each in links if each[1:] not in ids or not each.startswith("#")] == []


def test_nothing_comes_from_elsewhere_and_nothing_runs(page: Page) -> None:
    """No script, no handler, no address of another file or server; the browser is told to allow none either."""
    assert not {"script", "link", "iframe", "object", "embed", "base", "form", "img"} & {t for t, _ in page.elements}
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "srcset", "style")], tag
    text = render(DATA)
    assert "url(" not in text
    assert "@import" not in text
    assert set(re.findall(r"https?://[^\s\"'<]+", text)) == {"http://www.w3.org/2000/svg"}
    policy = next(a["content"] for t, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")


def test_both_languages_tell_the_same(page: Page) -> None:
    """The two halves have the same elements, ids and charts, each marked with its language."""
    halves = {language: render(DATA).partition(f'<main class="page" id="{language}"')[2] for language in ("en", "ja")}
    english, japanese = (half.partition("</main>")[0] for half in halves.values())
    shape = re.compile(r"<(/?[a-z0-9]+)")
    assert Counter(shape.findall(english)) == Counter(shape.findall(japanese))
    assert page.count("main") == 2
    assert "再起動直後" not in page.text("en")
    assert "First byte after a restart" not in page.text("ja")


def test_the_language_is_switched_without_scripts() -> None:
    """Two radio inputs, of which the asked-for one is checked, come before what they show, each with its label."""
    for language in ("en", "ja"):
        told = Page(render(DATA, language))  # type: ignore[arg-type]
        radios = [a for t, a in told.elements if t == "input"]
        assert [a["id"] for a in radios if "checked" in a] == [f"language-{language}"]
        assert {a.get("for") for t, a in told.elements if t == "label"} == {a["id"] for a in radios}
        order = [t for t, _ in told.elements if t in ("input", "main")]
        assert order == ["input", "input", "main", "main"]
        assert next(a["lang"] for t, a in told.elements if t == "html") == language


def test_every_figure_shows_what_it_rests_on(page: Page) -> None:
    """Value, n, interval or the reason for none, definition, raw data and command stand on the page in both
    languages; what was not measured says why."""
    for language in ("en", "ja"):
        text = page.text(language)
        for piece in ("0.512", "0.450–0.610", "n = 80", "98.8%", "93–99.8%", COMMAND, "bench.csv", "one restart"):
            assert piece in text, piece
        for piece in ("the engine asks for no key", "no price is set", "佐藤", "something.new"):
            assert piece in text, piece
    assert "95 of 100 successful requests received their first token" in page.text("en")
    assert "P95 の信頼区間には 80 件以上が必要です（40 件）" in page.text("ja")
    assert "the stream ended without its final event" in page.text("en")
    assert "ストリームが終了イベントなしで終わりました" in page.text("ja")
    ids = {attributes.get("id") for _, attributes in page.elements}
    assert {f"{language}-{figure.id}" for language in ("en", "ja") for figure in FIGURES.all} <= ids


def test_the_verdict_comes_first(page: Page) -> None:
    """Verdict, reasons and next steps stand before the contents, and a narrow decision is called that."""
    text = page.text("en")
    order = [
        "Chat only.",
        "lies within its interval",
        "A stream broke.",
        "Measure B again.",
        "A quick run.",
        "Contents",
    ]
    assert sorted(order, key=text.index) == order
    assert text.index("Contents") < text.index("Put Sekisho in front.")


THRESHOLDS = {
    "never approved": (ThresholdsPart(profile="p"), "The thresholds have not been approved."),
    "changed": (
        ThresholdsPart(
            approval=Approval(who="t", when="w", why="y", run="r"),
            changes=(ThresholdChange(what="cold.value", before="15", after="20"),),
            by_approved=("Do not adopt", "不採用"),
        ),
        "The thresholds were changed after they were approved.",
    ),
    "broken": (ThresholdsPart(problem="a record is gone"), "The records of approvals cannot be trusted."),
}


@pytest.mark.parametrize(("part", "words"), THRESHOLDS.values(), ids=THRESHOLDS.keys())
def test_thresholds_that_nobody_answers_for_are_told_loudly(part: ThresholdsPart, words: str) -> None:
    """What was not approved, or changed since, is told before the contents and again with the thresholds."""
    text = Page(render(msgspec.structs.replace(DATA, thresholds=part))).text("en")
    assert text.count(words) == 2
    assert text.index(words) < text.index("Contents")
    if part.changes:
        assert text.index("Do not adopt") < text.index("Contents")
        assert "cold.value" in text
    assert words not in Page(render(DATA)).text("en")


STATES = {"pass", "fail", "open", "limited", "B", "both"}


def strings(value: Any, hostile: str) -> Any:
    """The same data with a hostile text in place of every text but states, units and tags."""
    if isinstance(value, dict):
        kept = ("unit", "scale", "type")
        return {key: inner if key in kept else strings(inner, hostile) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [strings(each, hostile) for each in value]
    return hostile if isinstance(value, str) and value not in STATES else value


def test_no_text_from_outside_becomes_markup() -> None:
    """With hostile text in every place where text can stand, the page has the same elements, and nobody is misled by
    characters that cannot be seen."""
    data = msgspec.convert(strings(msgspec.to_builtins(DATA), HOSTILE), ReportData)
    data = msgspec.structs.replace(data, plan={HOSTILE: [HOSTILE, {"x": HOSTILE}]}, remarks=(("other", data.title),))
    data = msgspec.structs.replace(data, figures=Figures((*FIGURES.all, *data.figures.all)))
    text = render(data)
    hostile = Page(text)
    assert hostile.text("en").count("<script>alert(1)</script>") > 60
    assert not {"script", "img"} & {tag for tag, _ in hostile.elements}
    assert not [name for _, attributes in hostile.elements for name in attributes if name.startswith("on")]
    assert not re.search("[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", text)
    assert "⟨U+202E⟩gnp.exe" in hostile.text("en")
    assert "{{ 7*7 }}" in hostile.text("ja")
    assert not re.search(r"\b49\b", hostile.text("en"))
    assert check(seal(text, KEY).encode()).ok


@given(st.text())
def test_visible_text_hides_nothing(text: str) -> None:
    """No control, direction or invisible character is left but newline and tab; the rest is as it was."""
    told = visible(text)
    assert not re.search(
        "[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]", told
    )
    plain = re.sub("[^ -~\n]", "", text)
    assert re.sub(r"⟨U\+[0-9A-F]{4,6}⟩|⟨…⟩|[^ -~\n]", "", told) == plain
    told.encode()


def test_heaps_of_marks_do_not_overlay_the_page() -> None:
    """Forty accents on one letter are cut at four; ordinary ones stay."""
    assert visible("Z" + "\u0301" * 40 + "!") == "Z" + "\u0301" * 4 + "⟨…⟩!"
    assert visible("e\u0301か\u3099") == "e\u0301か\u3099"


def test_long_texts_are_cut_and_say_so() -> None:
    """An answer of a million letters makes no page of a million letters, and the reader is told where the rest is."""
    long = msgspec.structs.replace(DATA.disagreements[0], answer="あ" * 1_000_000)
    text = render(msgspec.structs.replace(DATA, disagreements=(long,)))
    assert len(text.encode()) < 200_000
    assert "the whole text is in the run&#39;s folder" in text
    assert "全文は実行フォルダーにあります" in text


def test_a_full_evaluation_stays_small() -> None:
    """Three places, three parallelisms, two lengths with eleven figures each, four charts of three series with 300
    requests, and eight disagreements make less than 400 kB."""
    what = ("success_rate", "ttfb_p95_s", "ttft_p50_s", "ttft_p95_s", "total_p50_s", "total_p95_s", "tok_s_median")
    what += ("tpot_p50_ms", "itl_p95_ms", "requests_per_s", "lag_p95_ms")
    figures = tuple(
        Figure(
            id=f"bench.{place}.closed.p{parallel}.t{tokens}.{each}",
            value=parallel * 1.2345,
            unit="s",
            n=80,
            interval=Interval(1.1, 2.2, "order statistics"),
            command=COMMAND,
            file="bench.csv",
        )
        for place in ("engine", "gateway", "public")
        for tokens in (256, 1024)
        for parallel in (1, 2, 3)
        for each in what
    )
    values = tuple(0.2 + (n * 7919 % 300) / 100 for n in range(300))
    charts = tuple(
        EcdfChart(id=f"c{n}", title=("t", "t"), series=tuple(Series((f"s{k}", f"s{k}"), values) for k in range(3)))
        for n in range(4)
    )
    answers = tuple(msgspec.structs.replace(DATA.disagreements[0], answer="回答" * 2000) for _ in range(8))
    data = msgspec.structs.replace(DATA, figures=Figures(figures + FIGURES.all), charts=charts, disagreements=answers)
    assert len(render(data).encode()) < 400_000


def test_the_least_report_is_a_page() -> None:
    """A run of which nothing is known yet gives a page that says so: no verdict, nothing signed."""
    told = Page(render(ReportData(run="r", title=("t", "題"))))
    assert "No scorecard was made in this run." in told.text("en")
    assert "No fault was found." in told.text("en")
    assert "この実行では評価表を作成していません。" in told.text("ja")
    assert "This file is not signed." in told.text("en")


# --- signed ---------------------------------------------------------------------------------------------


def test_the_page_can_be_verified_by_hand(tmp_path: Path) -> None:
    """The lines of Python that the report shows verify the report, and refuse it after one letter was changed."""
    sealed = seal(render(DATA), KEY).encode()
    assert shown_digest(sealed) == "cd" * 32
    found = re.search(r'<code class="by-hand">(.*?)</code>', sealed.decode(), re.DOTALL)
    assert found is not None
    (tmp_path / "by_hand.py").write_text(html.unescape(found[1]), "utf-8")
    for content, good in ((sealed, True), (sealed.replace(b"Chat only", b"Chat soon"), False), (sealed[:-1], False)):
        (tmp_path / "report.html").write_bytes(content)
        done = subprocess.run([sys.executable, "by_hand.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode == 0) is good, done.stderr
        assert (public_key(KEY).hex() in done.stdout) is good
