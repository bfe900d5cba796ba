"""The rating page in a real browser: after each test nothing may have been logged and no policy broken."""

import re
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from sekisho.evaluate.rubric.folder import RubricFolder
from sekisho.evaluate.rubric.sheets import Score
from sekisho.evaluate.rubric.sitting import Sitting

sys.path.insert(0, str(Path(__file__).parent))  # the harness lies beside these tests

from rubric_harness import GOOD, MODEL, POOR, Served, calibrated, filled, rate_all, some_tasks

Page = Any  # of the console's conftest.py, which importlib mode does not let a test import

PAGE = files("sekisho.evaluate.rubric").joinpath("page")
SHOWN = "(name) => !document.querySelector('#' + name).hidden"


@pytest.fixture
def folder(tmp_path: Path) -> RubricFolder:
    return filled(tmp_path)


async def at(page: Page, stage: str) -> None:
    await page.until(f"({SHOWN})('{stage}')")


async def press(page: Page, *keys: str) -> None:
    for key in keys:
        await page.press(key, code=ord(key.upper()))


async def score(page: Page, *points: str) -> None:
    """By digits alone; waits until the page says that it is saved."""
    await press(page, *points)
    await page.until("document.querySelector('#sum').className === 'kept'")


async def test_a_whole_rating_by_keyboard_alone(page: Page, folder: RubricFolder) -> None:
    """Digits score, Enter goes on, and after the last task the review comes: calibration, discussion, tasks, end."""
    taro = Sitting(folder, "taro")
    rate_all(taro)
    hanako = Sitting(folder, "hanako")
    async with Served(hanako) as served:
        await page.goto(served.link)
        await at(page, "task")
        for _ in range(2):
            await score(page, "2", "2", "1", "0")
            await page.press("Enter")
        await at(page, "review")
        await page.eval("document.querySelector('#hand-in').focus()")
        await page.press("Enter")
        await at(page, "discussion")
        assert await page.eval("document.activeElement.tagName") == "H2"
        await page.eval("document.querySelector('#begin').focus()")
        await page.press("Enter")
        await at(page, "task")
        for number in range(6):
            await score(page, "1" if number else "0", "1", "0", "0")
            await page.press("Enter")
        await at(page, "review")
        await page.click("#hand-in")
        await at(page, "done")
        await served.ended()
    sheet = folder.sheet("hanako")
    assert sheet is not None
    assert sheet.closed(0)
    assert sheet.closed(1)
    scores = [rated.score for rated in sheet.rounds[1].rated]
    assert sorted(one.correctness for one in scores) == [0, 1, 1, 1, 1, 1]
    assert {(one.instructions, one.readability, one.severe) for one in scores} == {(1, 0, False)}


async def test_the_link_leaves_the_address_bar_and_a_reload_goes_on(page: Page, folder: RubricFolder) -> None:
    """The token is gone from the address, and the page can be loaded again with what was saved."""
    async with Served(Sitting(folder, "hanako")) as served:
        await page.goto(served.link)
        await at(page, "task")
        assert await page.eval("location.href") == served.url
        await score(page, "2", "2", "1", "0")
        await page.reload()
        await at(page, "task")
        assert "1 of 2 rated" in await page.text("#progress")
        assert await page.eval("[...document.querySelectorAll('.step.rated')].length") == 1


async def test_a_used_link_says_what_to_do(open_page: Any, folder: RubricFolder) -> None:
    """Somebody else who opens the same link sees no task."""
    async with Served(Sitting(folder, "hanako")) as served:
        first = await open_page()
        await first.goto(served.link)
        await at(first, "task")
        await first.eval("localStorage.clear()")
        second = await open_page("ja-JP")
        await second.goto(served.link)
        await second.until("document.querySelector('#notice').textContent.includes('リンクは無効')")
        assert await second.eval("document.querySelectorAll('main:not([hidden])').length") == 0


HOSTILE = [
    "<script>window.broken = 1</script><img src=x onerror='window.broken = 1'>",
    "</pre><h1>You rated 5 of 5</h1><form action=//evil.example><button>",
    "abc\u202egnp.exe\u2066 x\u200b\u0007\u0000\ufeff\U000e0041",
    "[click](javascript:window.broken=1) http://evil.example/ ![x](http://evil.example/y.png)",
    "a\r\n" * 500 + "\u0301" * 200,
]


@pytest.mark.parametrize("text", HOSTILE)
async def test_an_answer_is_text_and_nothing_else(page: Page, tmp_path: Path, text: str) -> None:
    """No answer becomes an element, runs, asks another server, or hides a letter: unseen ones are shown by number."""
    tasks = some_tasks(1, 1)
    folder = filled(tmp_path, tasks, {task.prompt: text for task in tasks.all})
    async with Served(Sitting(folder, "hanako")) as served:
        await page.goto(served.link)
        await at(page, "task")
        inside = await page.eval("[...document.querySelector('#answer').querySelectorAll('*')].map(e => e.className)")
        assert set(inside) <= {"unseen-character"}
        shown = await page.eval("document.querySelector('#answer').textContent")
        unseen = re.compile("[\u202e\u2066\u200b\u0007\u0000\ufeff\U000e0041]")
        assert shown == unseen.sub(lambda found: f"U+{ord(found[0]):04X}", text)
        assert await page.eval("window.broken === undefined")
        assert [url for url in page.urls if not url.startswith(served.url)] == []


async def test_a_copy_is_the_answer_itself(page: Page, tmp_path: Path) -> None:
    """Whoever tries the code gets it letter by letter, not as it is shown."""
    text = "def f():\n\treturn '<b>'\n"
    tasks = some_tasks(1, 1)
    folder = filled(tmp_path, tasks, {task.prompt: text for task in tasks.all})
    async with Served(Sitting(folder, "hanako")) as served:
        await page.goto(served.link)
        await at(page, "task")
        await page.click("#copy")
        await page.until("document.querySelector('#notice').textContent === 'Copied.'")
        assert await page.eval("navigator.clipboard.readText()") == text


async def test_a_severe_defect_is_saved_once_it_is_named(page: Page, folder: RubricFolder) -> None:
    """Without a note the score is not sent, the page says why, and Enter leads to the note."""
    hanako = Sitting(folder, "hanako")
    async with Served(hanako) as served:
        await page.goto(served.link)
        await at(page, "task")
        await press(page, "2", "2", "1", "1")
        assert "which defect" in await page.text("#sum")
        await page.press("Enter")
        assert await page.eval("document.activeElement.id") == "note"
        assert folder.raters() == ()
        await page.type("It deletes the wrong file.")
        await page.until("document.querySelector('#sum').className === 'kept'")
        await page.press("Enter", "ctrl")
        await page.until("document.querySelector('.step[aria-current]').textContent === '2'")
    scores = [item.score for item in hanako.view().items if item.score]
    assert scores == [Score(2, 2, 1, True, "It deletes the wrong file.")]


async def test_digits_typed_into_a_note_are_no_scores(page: Page, folder: RubricFolder) -> None:
    """Keys score only where nobody is writing; Escape goes back to the scores."""
    async with Served(Sitting(folder, "hanako")) as served:
        await page.goto(served.link)
        await at(page, "task")
        await press(page, "n")
        await page.type("2 of 3 are wrong")
        await press(page, "2", "1")
        assert await page.eval("document.querySelectorAll('[aria-pressed=true]').length") == 0
        await page.press("Escape")
        await press(page, "1")
        assert await page.eval("document.querySelectorAll('[aria-pressed=true]').length") == 1


async def test_arrows_move_between_lines_and_tasks(page: Page, folder: RubricFolder) -> None:
    """Up and down choose a line, left and right a task; a score that is off the line's scale does nothing."""
    async with Served(Sitting(folder, "hanako")) as served:
        await page.goto(served.link)
        await at(page, "task")
        active = "[...document.querySelectorAll('.line')].findIndex(line => line.classList.contains('active'))"
        await press(page, "0")
        assert await page.eval(active) == 1
        await page.press("ArrowDown", code=40)
        await press(page, "2")
        assert await page.eval(active) == 2
        assert await page.eval("document.querySelectorAll('[aria-pressed=true]').length") == 1
        await page.press("ArrowUp")
        assert await page.eval(active) == 1
        await page.press("ArrowRight", code=39)
        assert await page.text(".step[aria-current]") == "2"
        await page.press("ArrowLeft", code=37)
        assert await page.text(".step[aria-current]") == "1"
        assert await page.eval("document.querySelectorAll('[aria-pressed=true]').length") == 1


async def test_the_other_calibration_appears_when_it_is_handed_in(page: Page, folder: RubricFolder) -> None:
    """The page waits by itself; a memo is asked for where they differ, and stands beside the tasks afterwards."""
    taro, hanako = Sitting(folder, "taro"), Sitting(folder, "hanako")
    rate_all(hanako)
    for item in taro.view().items:
        taro.rate(0, item.task, POOR)
    async with Served(hanako) as served:
        await page.goto(served.link)
        await at(page, "waiting")
        assert "half of it is missing" not in await page.text()
        taro.hand_in(0)
        await at(page, "discussion")
        assert (await page.text()).count("half of it is missing") == 2
        assert await page.eval("document.querySelectorAll('tr.differs').length") == 10
        await page.click("#begin")
        await page.until("document.querySelector('#notice').textContent.startsWith('You differ')")
        await page.click("#memo")
        await page.type("Half is not enough.")
        await page.click("#begin")
        await at(page, "task")
        assert "hanako: Half is not enough." in await page.text("#memos")
        assert "half of it is missing" not in await page.text()
    assert hanako.view().sides[0].memo == "Half is not enough."


async def test_the_page_never_holds_the_other_or_the_model(page: Page, folder: RubricFolder) -> None:
    """Neither what is shown nor what the page keeps in the browser names the model, a time or the other's scores."""
    taro, hanako = calibrated(folder, "taro", "hanako")
    rate_all(taro, default=Score(0, 1, 0, True, "a note of the other"))
    async with Served(hanako) as served:
        await page.goto(served.link)
        await at(page, "task")
        for number in range(6):
            await page.eval(f"document.querySelectorAll('.step')[{number}].click()")
            everything = await page.eval(
                "document.documentElement.outerHTML + JSON.stringify({...localStorage, ...sessionStorage})"
            )
            assert not [each for each in (MODEL, "4321", "a note of the other", "ratings-") if each in everything]


@pytest.mark.parametrize(
    ("accepts", "language", "words", "other"),
    [("ja-JP", "ja", "正確性", "Correctness"), ("en-GB", "en", "Correctness", "正確性")],
)
async def test_the_page_speaks_both_languages(
    open_page: Any, folder: RubricFolder, accepts: str, language: str, words: str, other: str
) -> None:
    """Texts, notes for raters and `lang` follow the browser, then the switch, which outlives a reload; a score that
    was begun stays."""
    async with Served(Sitting(folder, "hanako")) as served:
        page = await open_page(accepts)
        await page.goto(served.link)
        await at(page, "task")
        assert await page.eval("document.documentElement.lang") == language
        assert words in await page.text()
        assert ("必要なこと" if language == "ja" else "what it needs") in await page.text("#needs")
        await press(page, "2")
        await page.click("#language")
        assert other in await page.text()
        assert words not in await page.text()
        assert await page.eval("document.querySelectorAll('[aria-pressed=true]').length") == 1
        await page.reload()
        await at(page, "task")
        assert other in await page.text()


async def test_both_languages_have_every_text_with_the_same_gaps(page: Page, folder: RubricFolder) -> None:
    """The two tables have the same keys and name the same values, and every key that the page names is there."""
    async with Served(Sitting(folder, "hanako")) as served:
        await page.goto(served.link)
        tables = await page.eval("import('/static/texts.js').then(m => m.TEXTS)")
    gaps = {
        name: {key: sorted(re.findall(r"\{\w+\}", words)) for key, words in t.items()} for name, t in tables.items()
    }
    assert gaps["en"] == gaps["ja"]
    used = set(re.findall(r'data-(?:text|label|placeholder)="(\w+)"', PAGE.joinpath("rating.html").read_text()))
    for file in PAGE.iterdir():
        if file.name.endswith(".js"):
            used |= set(re.findall(r'\b(?:text|tell)\("(\w+)"', file.read_text()))
    assert used - set(tables["en"]) == set()


async def test_a_phone_needs_no_sideways_scrolling(open_page: Any, tmp_path: Path) -> None:
    """At 360 px no part is wider than the screen, whatever words the answer has."""
    tasks = some_tasks(1, 1)
    folder = filled(tmp_path, tasks, {task.prompt: "x" * 3000 + "\n" + "あ" * 300 for task in tasks.all})
    async with Served(Sitting(folder, "hanako")) as served:
        page = await open_page(width=360, height=740)
        await page.goto(served.link)
        await at(page, "task")
        assert await page.eval("document.documentElement.scrollWidth") <= 360
        await page.eval("document.querySelector('.step.last').click()")
        await at(page, "review")
        assert await page.eval("document.documentElement.scrollWidth") <= 360


async def test_when_the_command_ends_nothing_is_called_saved(page: Page, folder: RubricFolder) -> None:
    """The page says that the command does not answer, and the score is not marked as saved."""
    async with Served(Sitting(folder, "hanako")) as served:
        await page.goto(served.link)
        await at(page, "task")
        await score(page, "2", "2", "1", "0")
    await page.press("Enter")
    await press(page, "2", "2", "1", "0")
    await page.until("document.querySelector('#notice').classList.contains('trouble')")
    assert await page.eval("document.querySelector('#sum').className") == ""
    assert len(folder.sheet("hanako").rounds[0].rated) == 1  # type: ignore[union-attr]


async def test_every_control_has_a_name_and_can_be_reached(page: Page, folder: RubricFolder) -> None:
    """Nothing inline in the page's file, one heading of the first order, and no button without words."""
    html = PAGE.joinpath("rating.html").read_text()
    assert re.findall(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", html) == []
    async with Served(Sitting(folder, "hanako")) as served:
        await page.goto(served.link)
        await at(page, "task")
        nameless = "[...document.querySelectorAll('button')].filter(b => b.checkVisibility() && !b.innerText.trim())"
        assert await page.eval(f"{nameless}.length") == 0
        assert await page.eval("document.querySelectorAll('h1').length") == 1
        assert await page.eval("[...document.querySelectorAll('.line')].every(l => l.getAttribute('aria-label'))")


async def test_a_later_round_shows_only_what_they_disagreed_on(page: Page, folder: RubricFolder) -> None:
    """Two of six tasks come again, empty, and the page says which round it is."""
    hanako, taro = calibrated(folder, "hanako", "taro")
    rate_all(hanako, {"task-1": POOR, "task-4": POOR})
    rate_all(taro, default=GOOD)
    async with Served(Sitting(folder, "hanako", 2)) as served:
        await page.goto(served.link)
        await at(page, "task")
        assert "round 2" in await page.text("#who")
        assert "0 of 2 rated" in await page.text("#progress")
        assert "half of it is missing" not in await page.eval("document.documentElement.outerHTML")
