"""The chat page when things go wrong: refusals, broken answers, stopping, and models that write markup."""

import asyncio
import json
from typing import Any

import pytest
from aiohttp import web

# The page and the scripted server are fixtures of conftest.py, which importlib mode does not let a test import.
Page = Any
Api = Any


@pytest.mark.parametrize("by", ["Escape", "button"])
async def test_stopping_frees_the_server_and_keeps_what_had_come(page: Page, api: Api, by: str) -> None:
    """Escape and the stop button end the request on the server's side too; the partial answer goes into the history."""

    async def endless(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await api.open(request)
        await response.write(api.chunk({"content": "On and on"}))
        await asyncio.Event().wait()
        return response

    api.answer = endless
    await page.pass_gate(api.url)
    await page.ask("Talk")
    await page.until("document.querySelector('.answer .prose')?.textContent === 'On and on'")
    if by == "Escape":
        await page.press("Escape")
    else:
        await page.click("#stop")
    await asyncio.wait_for(api.left.wait(), 60)
    assert await page.answered() == "On and on"
    assert "Stopped" in await page.text(".figures")
    assert await page.eval("document.activeElement.id") == "composer-text"
    api.answer = api.say("Yes")
    await page.ask("Still there?")
    assert await page.answered(2) == "Yes"
    roles = [(each["role"], each["content"]) for each in api.requests[1]["messages"]]
    assert roles == [("user", "Talk"), ("assistant", "On and on"), ("user", "Still there?")]


_ATTACKS = (
    '<img src=x onerror="window.hacked=1"> <script>window.hacked=1</script>\n\n'
    "[click](javascript:window.hacked=1) [data](data:text/html,<b>) [here](/v1/models) **<b>bold</b>**\n\n"
    "```html\n</code></pre><script>window.hacked=1</script>\n```\n\n<svg onload=window.hacked=1>\n\n"
    "| a | b |\n|---|---|\n| <iframe src=javascript:1> | x |"
)


async def test_markup_of_the_model_stays_text(page: Page, api: Api) -> None:
    """No element, script or address that a model writes comes alive, in answer, thinking or error."""

    async def attack(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await api.open(request)
        await response.write(api.chunk({"reasoning_content": _ATTACKS}) + api.chunk({"content": _ATTACKS}))
        error = {"error": {"message": _ATTACKS, "code": "<b>", "id": "<i>id</i>"}}
        await response.write(f"data: {json.dumps(error)}\n\n".encode())
        return response

    api.answer = attack
    await page.pass_gate(api.url)
    await page.ask(_ATTACKS)
    shown = await page.answered()
    assert '<img src=x onerror="window.hacked=1">' in shown
    assert "</code></pre><script>" in shown
    assert await page.eval("document.querySelector('.answer .prose strong').textContent") == "<b>bold</b>"
    alive = "document.querySelectorAll('#log :is(img, script, iframe, svg, b, i, a)').length"
    assert await page.eval(alive) == 0
    assert await page.eval("window.hacked === undefined")


async def test_the_policy_forbids_markup_from_strings_and_inline_code(page: Page, api: Api) -> None:
    """The browser itself refuses innerHTML, eval and foreign addresses on this page."""
    await page.goto(api.url)
    refused = "(() => { try { document.body.innerHTML = '<b>x</b>'; return 'done' } catch (e) { return e.name } })()"
    assert await page.eval(refused) == "TypeError"
    foreign = "fetch('http://127.0.0.1:9/').then(() => 'done', (e) => e.name)"
    assert await page.eval(foreign) == "TypeError"
    assert any("connect-src" in problem for problem in page.problems)
    page.problems.clear()  # these two reports were wanted


async def test_a_failure_in_mid_answer_is_told_with_its_id_and_can_be_tried_again(page: Page, api: Api) -> None:
    """An error frame keeps the partial text, shows the error id and the next step; the button asks again."""

    async def breaks(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await api.open(request)
        await response.write(api.chunk({"content": "Half an"}))
        error = {"error": {"message": "The engine ended.", "code": "engine_failed", "id": "err_feedbeef0000"}}
        await response.write(f"data: {json.dumps(error)}\n\n".encode())
        return response

    api.answer = breaks
    await page.pass_gate(api.url)
    await page.ask("Go")
    assert await page.answered() == "Half an"
    assert await page.text(".error-id code") == "err_feedbeef0000"
    assert "The model broke off." in await page.text(".trouble")
    api.answer = api.say("A whole answer")
    await page.click(".trouble .again")
    await page.until("document.querySelector('.answer .prose')?.textContent === 'A whole answer'")
    assert await page.eval("document.querySelectorAll('.trouble, .answer').length") == 1
    assert api.requests[1]["messages"] == [{"role": "user", "content": "Go"}]


_PROBLEMS = [
    (401, "invalid_api_key", {}, "does not know this key"),
    (403, "permission_denied", {}, "may not do that"),
    (404, "model_not_found", {}, "does not have this model"),
    (400, "context_length_exceeded", {}, "too long for this model"),
    (400, "invalid_value", {}, "could not accept"),
    (413, "request_too_large", {}, "too large"),
    (429, "insufficient_quota", {}, "budget is spent"),
    (429, "rate_limit_exceeded", {"Retry_After": "90"}, "too fast"),
    (502, "engine_failed", {}, "broke off"),
    (503, "engine_unavailable", {"Retry_After": "90"}, "not ready"),
    (500, "internal_error", {}, "went wrong on the server"),
]


async def test_every_refusal_is_told_in_words_with_its_id(page: Page, api: Api) -> None:
    """Each status has its own words, the server's own message and the id; none leaves the page waiting."""
    await page.pass_gate(api.url)
    for number, (status, code, headers, words) in enumerate(_PROBLEMS, start=1):

        async def refuse(
            request: web.Request, body: Any, status: int = status, code: str = code, headers: Any = headers
        ) -> web.Response:
            refusal: web.Response = api.problem(status, code, f"server words for {code}", **headers)
            return refusal

        api.answer = refuse
        await page.ask(f"question {number}")
        await page.answered(number)
        told = await page.eval("[...document.querySelectorAll('.trouble')].at(-1).textContent")
        assert words in told
        assert f"server words for {code}" in told
        assert "err_0123456789ab" in told
        waits = await page.eval("[...document.querySelectorAll('.trouble button')].at(-1).disabled")
        assert waits == ("Retry_After" in headers)
    merged = api.requests[-1]["messages"]
    assert [each["role"] for each in merged] == ["user"]  # unanswered questions are one turn for the template


async def test_the_countdown_of_retry_after_ends_in_a_button_that_works(page: Page, api: Api) -> None:
    """The wait that the server named is shown and counted; then one press asks again."""

    async def limited(request: web.Request, body: dict[str, Any]) -> web.Response:
        refusal: web.Response = api.problem(429, "rate_limit_exceeded", "slow down", Retry_After="2")
        return refusal

    api.answer = limited
    await page.pass_gate(api.url)
    await page.eval("window.moment = Date.now(); void (Date.now = () => window.moment)")  # the test moves the time on
    await page.ask("Now")
    for left in (2, 1):
        await page.until(f"document.querySelector('.trouble .again')?.textContent === 'Try again in {left} s'")
        assert await page.eval("document.querySelector('.trouble .again').disabled")
        await page.eval("window.moment += 1000")
    api.answer = api.say("Later")
    await page.until("document.querySelector('.trouble .again').disabled === false")
    await page.click(".trouble .again")
    await page.until("document.querySelector('.answer .prose')?.textContent === 'Later'")


async def test_a_server_that_is_gone_or_hangs_up_is_told(page: Page, api: Api) -> None:
    """No network, an answer cut off without [DONE], and a proxy's HTML error are three clear messages."""
    await page.pass_gate(api.url)
    off = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    await page.call("Network.emulateNetworkConditions", offline=True, **off)
    await page.ask("Anybody?")
    await page.answered(1)
    assert "cannot be reached" in await page.text(".trouble")
    await page.call("Network.emulateNetworkConditions", offline=False, **off)

    async def hangs_up(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response: web.StreamResponse = await api.open(request)
        await response.write(api.chunk({"content": "Almost"}))
        return response

    api.answer = hangs_up
    await page.ask("And now?")
    assert await page.answered(2) == "Almost"
    assert "ended before the answer was complete" in await page.text(".answer:last-child .trouble")

    async def html(request: web.Request, body: dict[str, Any]) -> web.Response:
        return web.Response(status=503, text="<html>busy</html>", content_type="text/html")

    api.answer = html
    await page.ask("And now?")
    await page.answered(3)
    assert "not ready" in await page.text(".answer:last-child .trouble")


async def test_a_wrong_key_is_refused_at_the_gate_and_can_be_mended(page: Page, api: Api) -> None:
    """The gate says what is wrong, keeps what was typed, and takes the right key then."""
    await page.goto(api.url)
    for wrong, words in (("sk-wrong", "does not know this key"), ("鍵です", "plain letters")):
        await page.eval("document.querySelector('#key').select()")
        await page.type(wrong)
        await page.press("Enter")
        await page.until(f"document.querySelector('#key-problem').textContent.includes({json.dumps(words)})")
        assert await page.eval("document.querySelector('#key').getAttribute('aria-invalid')") == "true"
    await page.eval("document.querySelector('#key').select()")
    await page.type("sk-test-4f1d")
    await page.press("Enter")
    await page.until("document.activeElement.id === 'composer-text'")


_HEAVY = """[
  '**a '.repeat(8000), '`a ``b '.repeat(4000), '_a '.repeat(10000), '[a]('.repeat(8000), '~~a '.repeat(8000),
  '>'.repeat(3000) + 'x', '- '.repeat(20000) + 'x', '*'.repeat(20001) + 'y', '#' + ' '.repeat(20000) + 'x',
  '```' + ' '.repeat(20000) + '`', '|a'.repeat(3000) + '\\n' + '|-'.repeat(3000), '- a\\n'.repeat(5000),
]"""


async def test_text_made_to_exhaust_the_page_is_drawn(page: Page, api: Api) -> None:
    """Endless openers, deep nesting and long runs neither hang the page nor overflow its stack."""
    await page.goto(api.url)
    lengths = await page.eval(
        f"""import('/static/markdown.js').then(m => {_HEAVY}.map(source => {{
          const container = document.createElement('div');
          m.renderMarkdown(container, source, () => document.createElement('figcaption'));
          return container.textContent.length;
        }}))"""
    )
    assert len(lengths) == 12
    assert min(lengths) > 0
