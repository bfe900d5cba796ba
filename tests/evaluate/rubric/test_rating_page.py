"""The rating page's server, asked as a browser would, as another page would, and as an attacker would."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from sekisho.evaluate.rubric.folder import RubricFolder
from sekisho.evaluate.rubric.sheets import Score
from sekisho.evaluate.rubric.sitting import Sitting

sys.path.insert(0, str(Path(__file__).parent))  # the harness lies beside these tests

from rubric_harness import GOOD, MODEL, POOR, Served, filled, rate_all

PLAIN = {"correctness": 2, "instructions": 2, "readability": 1, "severe": False, "note": ""}


@pytest.fixture
def folder(tmp_path: Path) -> RubricFolder:
    return filled(tmp_path)


@pytest.fixture
async def served(folder: RubricFolder) -> AsyncIterator[Served]:
    async with Served(Sitting(folder, "hanako")) as one:
        yield one


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def enter(http: aiohttp.ClientSession, served: Served) -> dict[str, str]:
    """The headers of whoever has opened the link."""
    async with http.post(f"{served.url}api/open", json={"token": served.token}) as response:
        assert response.status == 200
        return {"authorization": f"Bearer {(await response.json())['session']}"}


async def ask(http: aiohttp.ClientSession, served: Served, path: str, body: Any = None, **headers: str) -> Any:
    """(status, JSON) of a request with exactly these headers."""
    method = "GET" if body is None else "POST"
    async with http.request(method, f"{served.url}{path}", json=body, headers=headers) as response:
        return response.status, await response.json()


async def test_a_link_opens_the_page_once(served: Served, http: aiohttp.ClientSession) -> None:
    """The token is exchanged for a session; a second use of the link, also by the same person, gets nothing."""
    headers = await enter(http, served)
    status, view = await ask(http, served, "api/view", **headers)
    assert (status, view["stage"], view["rater"], len(view["items"])) == (200, "calibration", "hanako", 2)
    status, told = await ask(http, served, "api/open", {"token": served.token})
    assert (status, "used already" in told["error"]) == (401, True)


@pytest.mark.parametrize("token", ["", "x", "\ud800", "あ", "a" * 43])
async def test_a_wrong_token_opens_nothing_and_does_not_use_up_the_right_one(
    served: Served, http: aiohttp.ClientSession, token: str
) -> None:
    """Guessing is answered with 401, and the rater still gets in afterwards."""
    body = json.dumps({"token": token}).encode()
    async with http.post(f"{served.url}api/open", data=body, headers={"content-type": "application/json"}) as response:
        assert response.status in (400, 401)
    await enter(http, served)


PATHS = [
    ("api/view", None),
    ("api/rate", {"round": 0, "task": "cal-0", "score": PLAIN}),
    ("api/hand-in", {"round": 0}),
    ("api/memo", {"memo": "x"}),
    ("api/begin", {}),
    ("api/nothing", None),
]


@pytest.mark.parametrize(("path", "body"), PATHS)
@pytest.mark.parametrize("given", ["", "Bearer ", "Bearer x", "Basic eDp4", "Bearer null", "bearer"])
async def test_nothing_is_told_without_the_session(
    served: Served, http: aiohttp.ClientSession, folder: RubricFolder, path: str, body: Any, given: str
) -> None:
    """Every route but the opening answers 401, and nothing is written."""
    headers = {"authorization": given} if given else {}
    status, told = await ask(http, served, path, body, **headers)
    assert (status, set(told)) == (401, {"error"})
    assert folder.raters() == ()


HOSTS = [
    "evil.example",
    "evil.example:{port}",
    "127.0.0.1",
    "127.0.0.1:1",
    "127.0.0.1.evil.example:{port}",
    "localhost",
]


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("path", ["", "static/rating.js", "api/view", "api/open"])
async def test_a_name_that_was_made_to_point_here_gets_nothing(
    served: Served, http: aiohttp.ClientSession, host: str, path: str
) -> None:
    """DNS rebinding: a page of another name reaches this server, and the server turns that name away, session or
    not."""
    headers = await enter(http, served)
    headers["host"] = host.format(port=served.url.split(":")[2].strip("/"))
    status, told = await ask(http, served, path, {"token": served.token} if path == "api/open" else None, **headers)
    assert (status, told) == (403, {"error": "This address is for this machine alone."})


async def test_localhost_is_this_machine_too(served: Served, http: aiohttp.ClientSession) -> None:
    """Behind an SSH tunnel a browser may say localhost."""
    headers = await enter(http, served)
    headers["host"] = f"localhost:{served.url.split(':')[2].strip('/')}"
    assert (await ask(http, served, "api/view", **headers))[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
async def test_another_page_cannot_rate_in_the_raters_name(
    served: Served, http: aiohttp.ClientSession, folder: RubricFolder, headers: dict[str, str]
) -> None:
    """A request that another page made is refused even if it had the session."""
    session = await enter(http, served)
    body = {"round": 0, "task": "cal-0", "score": PLAIN}
    status, _ = await ask(http, served, "api/rate", body, **session, **headers)
    assert status == 403
    assert folder.raters() == ()


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
async def test_a_form_of_another_page_is_no_request(served: Served, http: aiohttp.ClientSession, kind: str) -> None:
    """What a form can send without being asked for leave is not read."""
    session = await enter(http, served)
    body = json.dumps({"round": 0, "task": "cal-0", "score": PLAIN}).encode()
    async with http.post(f"{served.url}api/rate", data=body, headers={**session, "content-type": kind}) as response:
        assert response.status == 400


async def test_no_other_page_may_read_an_answer(served: Served, http: aiohttp.ClientSession) -> None:
    """There is no CORS leave, a preflight is refused, and each answer has its policy, errors too."""
    async with http.options(
        f"{served.url}api/view", headers={"origin": "http://evil.example", "access-control-request-method": "GET"}
    ) as response:
        assert response.status == 403
    for path in ("", "static/rating.js", "api/view", "static/none.js", "none"):
        async with http.get(f"{served.url}{path}") as response:
            names = {name.lower() for name in response.headers}
            assert not [name for name in names if name.startswith("access-control")]
            policy = response.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert "trusted-types 'none'" in policy
            assert "frame-ancestors 'none'" in policy
            assert response.headers["x-content-type-options"] == "nosniff"
            assert response.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "name", ["..%2frating_page.py", "%2e%2e%2ftasks.yaml", "rating_page.py", "/etc/passwd", "RATING.JS", "\0"]
)
async def test_only_the_pages_own_files_are_served(served: Served, http: aiohttp.ClientSession, name: str) -> None:
    """Names are looked up in a list, never opened as paths."""
    async with http.get(f"{served.url}static/{name}") as response:
        assert response.status in (400, 404)
        assert b"import" not in await response.read()


NO_RATINGS = [
    b"",
    b"{",
    b"[]",
    b"\xff",
    b'{"round": 0, "task": "cal-0"}',
    *(
        json.dumps({"round": number, "task": task, "score": {**PLAIN, **other}}).encode()
        for number, task, other in (
            (0, "cal-0", {"correctness": 3}),
            (0, "cal-0", {"severe": 1}),
            (0, "cal-0", {"severe": True}),
            (0, "none", {}),
            (1, "task-0", {}),
            (0, "cal-0", {"note": "x" * 5000}),
            (0, "cal-0", {"note": None}),
        )
    ),
]


@pytest.mark.parametrize("body", NO_RATINGS, ids=range(len(NO_RATINGS)))
async def test_what_is_no_rating_is_refused_in_words(
    served: Served, http: aiohttp.ClientSession, folder: RubricFolder, body: bytes
) -> None:
    """Half a request, points off the scale, a task that is not open, a defect without words: 400 and nothing kept."""
    headers = {**await enter(http, served), "content-type": "application/json"}
    async with http.post(f"{served.url}api/rate", data=body, headers=headers) as response:
        assert response.status == 400
        assert (await response.json())["error"]
    assert folder.raters() == ()


async def test_a_flood_is_not_read(served: Served, http: aiohttp.ClientSession) -> None:
    """A body beyond any note is refused by its size."""
    headers = await enter(http, served)
    status, told = await ask(http, served, "api/memo", {"memo": "x" * 200_000}, **headers)
    assert (status, set(told)) == (413, {"error"})


async def test_the_page_tells_nothing_of_the_other_and_of_the_model(
    folder: RubricFolder, http: aiohttp.ClientSession
) -> None:
    """Through calibration, waiting, rating and the end no answer of the server holds the other's scores, notes or
    name, the model's name, a time or a file; the discussion holds the calibration's scores and nothing else."""
    secrets = (MODEL, "4321", "ratings-", "answers.json", "sha256", str(folder.path), "a note of the other")
    taro = Sitting(folder, "taro")
    told: dict[str, list[str]] = {}
    async with Served(Sitting(folder, "hanako")) as served:
        headers = await enter(http, served)

        async def see(stage: str, path: str = "api/view", body: Any = None) -> dict[str, Any]:
            method = "GET" if body is None else "POST"
            async with http.request(method, f"{served.url}{path}", json=body, headers=headers) as response:
                told.setdefault(stage, []).append(await response.text() + str(response.headers))
                found: dict[str, Any] = json.loads(await response.text())
                return found

        async def rate_them(stage: str, round_: int) -> None:
            for item in (await see(stage))["items"]:
                await see(stage, "api/rate", {"round": round_, "task": item["task"], "score": PLAIN})

        await rate_them("calibration", 0)
        assert (await see("waiting", "api/hand-in", {"round": 0}))["stage"] == "waiting"
        rate_all(taro, default=Score(0, 1, 0, True, "a note of the other"))
        discussed = await see("discussion")
        assert discussed["sides"][1]["scores"]["cal-0"]["note"] == "a note of the other"
        await see("memo", "api/memo", {"memo": "agreed"})
        taro.begin()
        rate_all(taro, default=Score(0, 1, 0, True, "a note of the other"))
        await see("rating", "api/begin", {})
        await rate_them("rating", 1)
        assert (await see("done", "api/hand-in", {"round": 1}))["stage"] == "done"
        await served.ended()
    for stage, answers in told.items():
        found = [secret for secret in secrets for answer in answers if secret in answer]
        assert set(found) == ({"a note of the other"} if stage == "discussion" else set()), stage
        if stage not in ("discussion", "rating"):  # the memos of both stand beside the tasks
            assert not any("taro" in answer for answer in answers), stage


async def test_the_command_ends_when_all_is_handed_in(folder: RubricFolder, http: aiohttp.ClientSession) -> None:
    """The last answer still reaches the page, then the address is free."""
    for rater in ("hanako", "taro"):
        rate_all(Sitting(folder, rater))
    hanako = Sitting(folder, "hanako")
    hanako.begin()
    for item in hanako.view().items:
        hanako.rate(1, item.task, GOOD)
    async with Served(hanako) as served:
        headers = await enter(http, served)
        status, view = await ask(http, served, "api/hand-in", {"round": 1}, **headers)
        assert (status, view["stage"]) == (200, "done")
        await served.ended()
        with pytest.raises(aiohttp.ClientConnectionError):
            await ask(http, served, "api/view", **headers)


async def test_two_raters_have_two_addresses(folder: RubricFolder, http: aiohttp.ClientSession) -> None:
    """One rater's session opens nothing at the other's page."""
    async with Served(Sitting(folder, "hanako")) as one, Served(Sitting(folder, "taro")) as two:
        headers = await enter(http, one)
        await enter(http, two)
        assert (await ask(http, two, "api/view", **headers))[0] == 401


async def test_it_listens_to_this_machine_alone(served: Served) -> None:
    """The link is on the loopback address, and its token in the fragment, which is sent to nobody."""
    assert served.url.startswith("http://127.0.0.1:")
    assert len(served.token) >= 43


@pytest.mark.parametrize("after", [1, 2, 5])
async def test_kill_9_loses_no_score_that_was_acknowledged(
    folder: RubricFolder, http: aiohttp.ClientSession, after: int
) -> None:
    """The process is killed in the middle; the sheet is whole, holds every acknowledged score, and rating goes on."""
    for rater in ("hanako", "taro"):
        rate_all(Sitting(folder, rater))
    Sitting(folder, "hanako").begin()
    child = Path(__file__).with_name("rating_child.py")
    kept: dict[str, Any] = {}
    command = (sys.executable, str(child), str(folder.path.parent), "hanako")
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        url, _, token = (await process.stdout.readline()).decode().strip().partition("#")
        async with http.post(f"{url}api/open", json={"token": token}) as response:
            headers = {"authorization": f"Bearer {(await response.json())['session']}"}
        async with http.get(f"{url}api/view", headers=headers) as response:
            names = [item["task"] for item in (await response.json())["items"]]
        for name in names[:after]:
            body = {"round": 1, "task": name, "score": {**PLAIN, "note": name}}
            async with http.post(f"{url}api/rate", json=body, headers=headers) as response:
                assert response.status == 200
            kept[name] = Score(2, 2, 1, False, name)
    finally:
        process.kill()
        await process.wait()
    again = Sitting(folder, "hanako")
    with folder.at_work("hanako"):  # the dead process holds nothing
        scores = {item.task: item.score for item in again.view().items if item.score is not None}
    assert scores == kept
    assert [item.task for item in again.view().items] == names
    for name in names[after:]:
        again.rate(1, name, POOR)
    again.hand_in(1)
    assert again.view().stage == "done"


async def test_views_are_plain_json(folder: RubricFolder) -> None:
    """What the page gets is what a struct of the house says, so that the page rests on one definition."""
    view = Sitting(folder, "hanako").view()
    assert msgspec.json.decode(msgspec.json.encode(view), type=type(view)) == view
