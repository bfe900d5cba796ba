"""Questions to an engine over HTTP: short ones, with a deadline each, and no key in what is said about them."""

import asyncio
from collections.abc import Awaitable
from typing import Any, Final, NamedTuple

import msgspec

from sekisho.control.actuators.base import failed
from sekisho.control.base import ActuatorFailed, EngineState
from sekisho.core.decoding import Undecodable, decoded
from sekisho.engines.http_client import HttpClient, HttpTrouble

STATE_DEADLINE_S: Final = 5.0
QUESTION_S: Final = 10.0
_MOST_BYTES: Final = 8 * 2**20
_SHOWN: Final = 300


_MISREAD: Final = (TypeError, ValueError, LookupError, AttributeError)  # an answer of another shape than published


class Answer(NamedTuple):
    status: int
    body: bytes

    @property
    def value(self) -> Any:
        """The body as JSON; None where it is none."""
        try:
            return decoded(self.body, object)
        except Undecodable:
            return None

    @property
    def fields(self) -> dict[str, Any]:
        """The body as a JSON object; empty where it is none."""
        return self.value if isinstance(self.value, dict) else {}

    @property
    def text(self) -> str:
        return self.body.decode(errors="replace")


class _Line:
    """The way to one address, and how many questions are under way on it."""

    def __init__(self, client: HttpClient) -> None:
        self.client = client
        self.questions = 0


class EngineHttp:
    """The engine of `model` at `url`, with or without the `/v1` of OpenAI's interface, which is then `api`. Belongs to
    one loop; opens no connection before the first question. Raises ActuatorFailed for an address or a key that cannot
    be used."""

    def __init__(self, model: str, label: str, url: str | None, key: str | None) -> None:
        self.model, self.label = model, label
        self._key = key
        self._line: _Line | None = None
        self._former: list[_Line] = []  # to addresses that it has left; closed once nobody asks there any more
        self.root = self.api = ""
        if url is not None:
            self.move(url)

    def move(self, url: str) -> None:
        """The engine answers at this address from now on."""
        whole = url.rstrip("/")
        root = whole.removesuffix("/v1")
        if self._line is not None and (root, whole) == (self.root, self.root + self.api):
            return
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        try:
            line = _Line(HttpClient(root, headers, connect_timeout_s=STATE_DEADLINE_S))
        except ValueError as error:
            raise self.failed(str(error), "correct its address or its key in the settings") from None
        if self._line is not None:
            self._former.append(self._line)
        self._line = line
        self.root, self.api = root, whole.removeprefix(root)

    async def ask(self, method: str, path: str, body: Any = None, *, timeout_s: float = QUESTION_S) -> Answer:
        """Raises ActuatorFailed where no whole answer came within `timeout_s`."""
        await self._leave()
        line = self._line
        if line is None:
            raise self.failed("it has no address", "set its `url`, or start it")
        sent = b"" if body is None else msgspec.json.encode(body)
        line.questions += 1
        try:
            async with asyncio.timeout(timeout_s):
                response = await line.client.send(method, _prefix(self.root) + path, sent, timeout_s)
                try:
                    return Answer(response.status, await _read(response))
                finally:
                    response.let_go()
        except TimeoutError:
            raise self.failed(f"no answer to {method} {path} within {timeout_s:g} s", _LOOK) from None
        except HttpTrouble as error:
            raise self.failed(f"{method} {path}: {error}", _LOOK) from None
        finally:
            line.questions -= 1

    async def _leave(self) -> None:
        """Closes the lines to former addresses on which nothing is under way."""
        while (line := next((each for each in self._former if not each.questions), None)) is not None:
            self._former.remove(line)
            await line.client.close()

    async def told(self, method: str, path: str, body: Any = None, *, timeout_s: float = QUESTION_S) -> dict[str, Any]:
        """The JSON object of an answer with status 200. Raises ActuatorFailed with what the engine said instead."""
        answer = await self.ask(method, path, body, timeout_s=timeout_s)
        if answer.status == 200 and isinstance(answer.value, dict):
            return answer.fields
        raise self.refused(method, path, answer)

    def refused(self, method: str, path: str, answer: Answer) -> ActuatorFailed:
        """The failure that an unwelcome answer is."""
        if answer.status in (401, 403):
            return self.failed(f"{method} {path} refused the key", "correct `api_key_env` or `api_key_file`")
        said = _message(answer.value) or answer.text
        return self.failed(f"{method} {path} answered {answer.status}: {said[:_SHOWN]}", _LOOK)

    def failed(self, what: str, advice: str) -> ActuatorFailed:
        """One sentence that says which engine, what happened and what to do; without the key."""
        if self._key:
            what = what.replace(self._key, "***")
        return failed(self.model, self.label, what, advice)

    async def close(self) -> None:
        for line in (*self._former, self._line):
            if line is not None:
                await line.client.close()
        self._former.clear()


_LOOK: Final = "look whether it runs, and into its log"


def _prefix(root: str) -> str:
    """The path of an address that is not the root of its host."""
    _, _, rest = root.partition("://")
    host, slash, path = rest.partition("/")
    return f"/{path}" if slash and host else ""


async def _read(response: Any) -> bytes:
    pieces, size = [], 0
    while data := await response.read_any():
        size += len(data)
        if size > _MOST_BYTES:
            raise HttpTrouble(f"an answer of more than {_MOST_BYTES >> 20} MiB")
        pieces.append(data)
    return b"".join(pieces)


def _message(value: Any) -> str | None:
    """What went wrong, in the forms that engines have for it."""
    for name in ("error", "message", "detail"):
        found = value.get(name) if isinstance(value, dict) else None
        if isinstance(found, dict):
            return _message(found)
        if isinstance(found, str):
            return found
    return None


async def within(deadline_s: float, model: str, engine: str, asking: Awaitable[EngineState]) -> EngineState:
    """The state, or a state that says why there is none. Never raises, and is back by the deadline."""
    try:
        async with asyncio.timeout(deadline_s):
            return await asking
    except TimeoutError:
        return EngineState(model, engine, "down", f"it did not tell its state within {deadline_s:g} s")
    except ActuatorFailed as error:
        return EngineState(model, engine, "down", str(error))
    except _MISREAD as error:
        return EngineState(model, engine, "down", f"what it told of its state cannot be read: {error!r}")
