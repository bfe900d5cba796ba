"""The chat page in a real browser. After each test the fixture checks that nothing was logged and no policy broken."""

import asyncio
import json
from typing import Any

import pytest
from aiohttp import web

# The page and the scripted server are fixtures of conftest.py, which importlib mode does not let a test import.
Page = Any
Api = Any


async def test_a_key_opens_the_room_and_an_answer_comes_with_its_figures(page: Page, api: Api) -> None:
    """Key, model list, question, answer, tokens: the whole way by keyboard alone."""
    api.answer = api.say("The ", "gate ", "is open.")
    await page.pass_gate(api.url)
    await page.ask("Is it open?")
    assert await page.answered() == "The gate is open."
    figures = (await page.text(".figures")).replace("\u00a0", " ")
    assert "57 tokens in · 23 out" in figures
    sent = api.requests[0]
    assert sent["model"] == "sekisho-mini"
    assert sent["messages"] == [{"role": "user", "content": "Is it open?"}]
    assert sent["stream"] is True
    assert "temperature" not in sent
    assert "max_tokens" not in sent


async def test_nothing_is_asked_of_anybody_else(page: Page, api: Api) -> None:
    """Every request of the page goes to the server that it came from."""
    await page.pass_gate(api.url)
    await page.ask("Hello")
    await page.answered()
    assert len(page.urls) >= 10
    assert [url for url in page.urls if not url.startswith(api.url)] == []


@pytest.mark.parametrize(
    ("accepts", "language", "words", "after_switch"),
    [
        ("ja-JP", "ja", "鍵をお見せください", "Your key, please"),
        ("en-GB", "en", "Your key, please", "鍵をお見せください"),
    ],
)
async def test_the_page_speaks_the_language_of_the_browser_and_switches(
    open_page: Any, api: Api, accepts: str, language: str, words: str, after_switch: str
) -> None:
    """Language and `lang` follow the browser; the switch changes both, every text of them, and outlives a reload."""
    page = await open_page(accepts)
    await page.goto(api.url)
    assert await page.eval("document.documentElement.lang") == language
    assert words in await page.text()
    await page.click("#language")
    assert after_switch in await page.text()
    assert words not in await page.text()
    await page.pass_gate(api.url)
    other = "en" if language == "ja" else "ja"
    assert await page.eval("document.documentElement.lang") == other
    empty = "[...document.querySelectorAll('[data-text]')].filter(e => e.textContent === '').length"
    assert await page.eval(empty) == 0


async def test_both_languages_have_every_text_with_the_same_gaps(page: Page, api: Api) -> None:
    """The two tables have the same keys and name the same values."""
    await page.goto(api.url)
    tables = await page.eval("import('/static/messages.js').then(m => m.TEXTS)")
    gaps = {
        name: {key: sorted(part.split("}")[0] for part in words.split("{")[1:]) for key, words in table.items()}
        for name, table in tables.items()
    }
    assert set(gaps) == {"en", "ja"}
    assert gaps["en"] == gaps["ja"]


async def test_words_appear_while_the_answer_is_still_coming(page: Page, api: Api) -> None:
    """The first words stand on the page before the server has sent the last ones."""
    goes_on = asyncio.Event()

    async def slowly(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await api.open(request)
        await response.write(api.chunk({"content": "One **two**"}))
        await goes_on.wait()
        await response.write(api.chunk({"content": " three"}) + api.ending())
        return response

    api.answer = slowly
    await page.pass_gate(api.url)
    await page.ask("Count")
    await page.until("document.querySelector('.answer .prose strong')?.textContent === 'two'")
    assert await page.eval("document.querySelector('.answer').getAttribute('aria-busy')") == "true"
    assert await page.eval("!document.querySelector('#stop').hidden && document.querySelector('#send').hidden")
    goes_on.set()
    assert await page.answered() == "One two three"


async def test_enter_that_ends_a_composition_does_not_send(open_page: Any, api: Api) -> None:
    """Choosing a word with Enter in an input method sends nothing; the next Enter sends."""
    page = await open_page("ja-JP")
    await page.pass_gate(api.url)
    await page.call("Input.imeSetComposition", text="にほん", selectionStart=3, selectionEnd=3)
    await page.press("Enter", ime=True)
    await page.press("Enter", code=229, ime=True)
    await page.type("日本")
    await page.press(
        "Enter", code=229, ime=True
    )  # Safari's order: the composition has ended, the key still belongs to it
    assert await page.eval("document.querySelector('#composer-text').value") == "日本"
    assert api.requests == []
    await page.press("Enter")
    await page.answered()
    assert api.requests[0]["messages"][0]["content"] == "日本"


async def test_markdown_becomes_elements(page: Page, api: Api) -> None:
    """Headings, nested lists, code, tables, quotes and links are built; half a link or half a fence does no harm."""
    source = (
        "# Title\n\nA *b* **c** ~~d~~ `e*f*` snake_case_name 2 * 3 * 4\n\n1. one\n2. two\n   - inner\n\n> quote\n\n"
        "```py\nprint('**x**')\n```\n\n| h | i |\n|:-:|---|\n| 1 | 2 |\n\n---\n\n"
        "[site](https://example.com/a_(b)) https://example.com/x。次 [open](https:// \\*plain\\*\n\n~~~\nunclosed"
    )
    api.answer = api.say(*source)
    await page.pass_gate(api.url)
    await page.ask("Show")
    await page.answered()
    outline = await page.eval(
        "[...document.querySelectorAll('.answer .prose :is(h3, ol > li, ul > li, blockquote, pre, th, td, hr, em, "
        "strong, s, p > code)')].map(e => e.tagName + ':' + e.textContent.replaceAll('\\n', ' '))"
    )
    assert outline == [
        "H3:Title",
        "EM:b",
        "STRONG:c",
        "S:d",
        "CODE:e*f*",
        "LI:one",
        "LI:twoinner",
        "LI:inner",
        "BLOCKQUOTE:quote",
        "PRE:print('**x**')",
        "TH:h",
        "TH:i",
        "TD:1",
        "TD:2",
        "HR:",
        "PRE:unclosed",
    ]
    links = await page.eval("[...document.querySelectorAll('.answer .prose a')].map(e => [e.href, e.target, e.rel])")
    assert [each[0] for each in links] == ["https://example.com/a_(b)", "https://example.com/x"]
    assert all(target == "_blank" and "noopener" in rel for _, target, rel in links)
    assert "snake_case_name 2 * 3 * 4" in await page.text(".answer .prose")
    assert "*plain*" in await page.text(".answer .prose")


_GNARLY = (
    '\ufeff: hello\r\ndata: {"a":1}\r\n\r\nevent: error\rdata:x\rdata: y\r\r'
    ":c\n\ndata\ndata: 日本\n\nid: 1\ndata: z\n\n"
)


async def test_any_split_of_the_stream_gives_the_same_events(page: Page, api: Api) -> None:
    """CRLF, CR, LF, comments, empty and joined data lines: split at any two places, the events are the same."""
    await page.goto(api.url)
    events = await page.eval(
        f"""import('/static/sse.js').then(({{SseParser}}) => {{
          const source = {json.dumps(_GNARLY)};
          const parse = (...parts) => {{ const p = new SseParser(); return parts.flatMap(part => p.feed(part)); }};
          const whole = JSON.stringify(parse(source));
          for (let i = 0; i <= source.length; i++) for (let j = i; j <= source.length; j++) {{
            const split = JSON.stringify(parse(source.slice(0, i), source.slice(i, j), source.slice(j)));
            if (split !== whole) return [i, j, split];
          }}
          return JSON.parse(whole);
        }})"""
    )
    assert events == [
        {"event": "message", "data": '{"a":1}'},
        {"event": "error", "data": "x\ny"},
        {"event": "message", "data": "\n日本"},
        {"event": "message", "data": "z"},
    ]


async def test_a_character_cut_in_half_on_the_wire_arrives_whole(page: Page, api: Api) -> None:
    """Bytes sent one by one, with CRLF and comments between the frames, give the text that was meant."""

    async def bytewise(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await api.open(request)
        frames = b": keep-alive\n\n" + api.chunk({"content": "関所の門🌿"}) + b": keep-alive\n\n" + api.ending()
        for byte in frames.replace(b"\n", b"\r\n"):
            await response.write(bytes([byte]))
        return response

    api.answer = bytewise
    await page.pass_gate(api.url)
    await page.ask("関所")
    assert await page.answered() == "関所の門🌿"


async def test_thinking_is_folded_and_not_sent_back(page: Page, api: Api) -> None:
    """Reasoning stands in a closed fold above the answer and is no part of the next request."""

    async def thinks(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response: web.StreamResponse = await api.open(request)
        await response.write(api.chunk({"reasoning_content": "secret "}) + api.chunk({"reasoning_content": "plan"}))
        await response.write(api.chunk({"content": "Done."}) + api.ending())
        return response

    api.answer = thinks
    await page.pass_gate(api.url)
    await page.ask("Think")
    assert await page.answered() == "Done."
    assert await page.eval("document.querySelector('.thinking').open") is False
    assert await page.eval("document.querySelector('.thought').textContent") == "secret plan"
    await page.ask("Again")
    await page.answered(2)
    assert "secret" not in json.dumps(api.requests[1])


async def test_settings_and_conversation_outlive_a_reload_and_a_new_chat_begins_empty(page: Page, api: Api) -> None:
    """Settings are sent as set; the messages are there after a reload, and gone after New chat."""
    await page.pass_gate(api.url)
    await page.click("#open-settings")
    await page.type("Answer in rhymes.")
    await page.press("Tab")
    await page.type("0.3")
    await page.press("Tab")
    await page.type("99")
    await page.press("Enter")
    await page.until("!document.querySelector('#settings').open")
    await page.eval("(e => { e.value = 'tall-model'; e.dispatchEvent(new Event('change')) })(model)")
    await page.ask("First")
    await page.answered()
    await page.reload()
    await page.until("document.querySelector('.answer .prose')?.textContent === 'Hello'")
    await page.until("document.activeElement.id === 'composer-text'")
    await page.ask("Second")
    await page.answered(2)
    sent = api.requests[1]
    assert (sent["model"], sent["temperature"], sent["max_tokens"]) == ("tall-model", 0.3, 99)
    assert [each["role"] for each in sent["messages"]] == ["system", "user", "assistant", "user"]
    assert sent["messages"][0]["content"] == "Answer in rhymes."
    await page.click("#new-chat")
    await page.until("!document.querySelector('#welcome').hidden")
    await page.ask("Third")
    await page.answered()
    assert [each["role"] for each in api.requests[2]["messages"]] == ["system", "user"]


async def test_the_key_stays_in_the_tab_unless_asked_and_can_be_forgotten(page: Page, api: Api) -> None:
    """Only with the tick is the key put on the device; forgetting erases key and messages everywhere."""
    await page.pass_gate(api.url)
    assert await page.eval("[sessionStorage['sekisho.key'], localStorage['sekisho.key'] ?? null]") == [
        "sk-test-4f1d",
        None,
    ]
    await page.ask("A secret")
    await page.answered()
    await page.click("#open-settings")
    await page.click("#forget")
    await page.until("document.activeElement.id === 'key'")
    assert await page.eval("JSON.stringify({...sessionStorage, ...localStorage})") == "{}"
    assert "A secret" not in await page.eval("document.body.textContent")
    await page.type("sk-test-4f1d")
    await page.press("Tab")
    await page.press(" ")
    await page.press("Enter")
    await page.until("document.activeElement.id === 'composer-text'")
    assert await page.eval("localStorage['sekisho.key']") == "sk-test-4f1d"


async def test_everything_is_done_by_keyboard(page: Page, api: Api) -> None:
    """Shift+Enter breaks the line, ↑ edits the last message, `/` and Ctrl+K lead back to the field, Escape cancels."""
    await page.pass_gate(api.url)
    await page.type("one")
    await page.press("Enter", "shift")
    assert await page.eval("document.querySelector('#composer-text').value") in ("one\n", "one")
    await page.eval("document.querySelector('#composer-text').value = 'one\\ntwo'")
    await page.press("Enter")
    await page.answered()
    assert api.requests[0]["messages"][0]["content"] == "one\ntwo"
    await page.press("ArrowUp")
    assert await page.eval("document.querySelector('#composer-text').value") == "one\ntwo"
    await page.press("Escape")
    assert await page.eval("document.querySelector('#composer-text').value") == ""
    await page.press("ArrowUp")
    await page.eval("document.querySelector('#composer-text').select()")
    await page.ask("three")
    await page.answered()
    await page.until("document.querySelector('.said').textContent === 'three'")
    assert api.requests[1]["messages"] == [{"role": "user", "content": "three"}]
    for key, modifiers in (("/", ()), ("k", ("ctrl",))):
        await page.eval("document.activeElement.blur()")
        await page.press(key, *modifiers)
        assert await page.eval("document.activeElement.id") == "composer-text"
        assert await page.eval("document.querySelector('#composer-text').value") == ""


async def test_answer_again_replaces_the_last_answer_only(page: Page, api: Api) -> None:
    """The history that is sent again ends with the last question; the earlier answers stay."""
    await page.pass_gate(api.url)
    await page.ask("a")
    await page.answered(1)
    await page.ask("b")
    await page.answered(2)
    api.answer = api.say("Better")
    await page.click(".answer:last-child .again")
    await page.until("document.querySelector('.answer:last-child .prose')?.textContent === 'Better'")
    assert await page.answered(2) == "Better"
    assert [each["content"] for each in api.requests[2]["messages"]] == ["a", "Hello", "b"]


@pytest.mark.parametrize("secure", [True, False])
async def test_code_is_copied_exactly(page: Page, api: Api, secure: bool) -> None:
    """A block's button takes the code as it was written, also where the browser hides its clipboard (plain http)."""
    api.answer = api.say("Try:\n\n```sh\necho  '<a>'\n\ttab\n```\n")
    await page.pass_gate(api.url)
    await page.ask("Code")
    await page.answered()
    await page.call("Page.bringToFront")
    if not secure:
        await page.eval("window.kept = navigator.clipboard; delete Navigator.prototype.clipboard")
        assert await page.eval("navigator.clipboard === undefined")
    await page.click(".code figcaption button")
    await page.until("document.querySelector('.code figcaption button').textContent === 'Copied'")
    assert await page.eval("document.activeElement.textContent") == "Copied"
    assert await page.eval("(window.kept ?? navigator.clipboard).readText()") == "echo  '<a>'\n\ttab"


_CONTRASTS = """
[...document.querySelectorAll('body *')].flatMap(element => {
  const words = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
  if (!words || !element.checkVisibility({opacityProperty: true, visibilityProperty: true})) return [];
  if (element.closest('.unseen, .skip, :disabled, option')) return [];
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  let ground = element;
  while (ground && (rgb(getComputedStyle(ground).backgroundColor)[3] ?? 1) === 0) ground = ground.parentElement;
  const light = colour => {
    const [r, g, b] = colour.slice(0, 3).map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const pair = [getComputedStyle(element).color, getComputedStyle(ground ?? document.body).backgroundColor];
  const [a, b] = pair.map(rgb).map(light).sort((x, y) => y - x);
  const ratio = (a + 0.05) / (b + 0.05);
  return [[ratio, element.tagName + '.' + element.className + ' ' + pair.join(' on ')]];
})
"""


@pytest.mark.parametrize("dark", [False, True])
async def test_text_contrast_and_narrow_layout(open_page: Any, api: Api, dark: bool) -> None:
    """All text has a contrast of 4.5 or more in both schemes; at 340 px nothing sticks out to the side."""
    wide = "https://example.com/" + "x" * 300
    source = (
        f"# T\n\nText `code` {wide}\n\n> quote\n\n```py\n{'y' * 300}\n```\n\n| {'z' * 200} | b |\n|---|---|\n| 1 | 2 |"
    )
    api.answer = api.say(source)
    page = await open_page("ja-JP", 340, 700, dark)
    await page.pass_gate(api.url)
    await page.ask("x" * 200)
    await page.answered()

    async def refuse(request: web.Request, body: dict[str, Any]) -> web.Response:
        refusal: web.Response = api.problem(400, "invalid_value", "w" * 300)
        return refusal

    api.answer = refuse
    await page.ask("もう一度")
    await page.answered(2)
    measured = await page.eval(_CONTRASTS)
    assert len(measured) > 15
    assert [what for ratio, what in measured if ratio < 4.5] == []
    assert await page.eval("document.documentElement.scrollWidth") <= 340
    assert await page.eval("document.querySelector('#scroll').scrollWidth <= 340")
