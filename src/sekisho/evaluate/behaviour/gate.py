"""The API gates: what a client program needs of an address, tried one after the other, each with a verdict.

models → no_key → chat_oneshot → chat_two_turn → chat_stream → responses → responses_stream → state
"""

import random
import secrets
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Literal, get_args

import msgspec

from sekisho.evaluate.behaviour.continuity import AGAIN, SET
from sekisho.evaluate.behaviour.gate_verdict import OWN, Failure, Words, failure_of
from sekisho.evaluate.behaviour.keywords import keyword
from sekisho.evaluate.client.answer import Answer, Expected, is_called, server_words
from sekisho.evaluate.client.answer_apis import read
from sekisho.evaluate.client.asking import Question, send
from sekisho.evaluate.client.exchange import Connections, Exchange, Limits
from sekisho.evaluate.client.faults import Fault, by_status, first_failing
from sekisho.evaluate.client.target import Key, Target
from sekisho.evaluate.figures import Figure
from sekisho.evaluate.progress import Progress, silent

Gate = Literal[
    "models", "no_key", "chat_oneshot", "chat_two_turn", "chat_stream", "responses", "responses_stream", "state"
]
GATES: tuple[Gate, ...] = get_args(Gate)
ALWAYS: tuple[Gate, ...] = ("models", "no_key")
CHAT: tuple[Gate, ...] = ("chat_oneshot", "chat_two_turn", "chat_stream")
RESPONSES: tuple[Gate, ...] = ("responses", "responses_stream")
STATE: tuple[Gate, ...] = ("state",)

MAX_TOKENS = 256
GATE_LIMITS = Limits(silence_s=120.0, total_s=120.0)
WORDS_CHARS = 300
_SHORTEST_PART = 8  # of a key that is worth hiding
_HELLO = "日本の都市を一つ挙げてください。 Name one city of Japan."


class GateResult(msgspec.Struct, frozen=True, kw_only=True):
    """`passed` None: not tried, and `kind` says why. Pairs are (English, Japanese); they are empty for what passed.

    `kind`: a fault's kind or one of `gate_verdict.OWN`. `faults` are those of all answers, also such as do not fail.
    `status` and `words` (the server's own, cut) are those of the answer that failed, else of the last one. `note` is
    what was seen besides and decides nothing.
    """

    gate: Gate
    passed: bool | None
    kind: str = ""
    faults: tuple[Fault, ...] = ()
    reason: Words = ("", "")
    next: Words = ("", "")
    status: int | None = None
    ms: float | None = None
    words: str = ""
    note: Words = ("", "")


async def run_gates(
    target: Target,
    which: Sequence[Gate] = GATES,
    progress: Progress = silent,
    *,
    limits: Limits = GATE_LIMITS,
    max_tokens: int = MAX_TOKENS,
) -> tuple[GateResult, ...]:
    """Tries the gates in the order of `GATES`. Never raises for what the other side does. Where nobody listens, the
    first gate finds out for all."""
    chosen = [gate for gate in GATES if gate in which]
    results: list[GateResult] = []
    async with Connections(target, limits) as connections:
        tries = _Tries(connections, max_tokens)
        for number, gate in enumerate(chosen):
            progress(f"gate {target.place}", number, len(chosen))
            if results and results[0].kind in ("not_connected", "certificate"):
                results.append(msgspec.structs.replace(results[0], gate=gate, ms=None))
                continue
            results.append(await tries.of(gate))
    progress(f"gate {target.place}", len(chosen), len(chosen))
    return tuple(results)


def figures(results: Iterable[GateResult], target: Target, *, command: str = "", file: str = "") -> list[Figure]:
    """`gate.<place>.<gate>`; null with the reason for a gate that was not tried."""
    return [
        Figure(
            id=f"gate.{target.place}.{result.gate}",
            value=result.passed,
            why_null=result.reason[0] if result.passed is None else "",
            note=result.kind,
            command=command,
            file=file,
        )
        for result in results
    ]


async def listed_models(target: Target, limits: Limits = GATE_LIMITS) -> tuple[str, ...]:
    """The models that the address lists; none where it does not."""
    async with Connections(target, limits) as connections:
        return _listed(await connections.exchange("GET", "/v1/models"))


class _Tries:
    """The gates of one address, on connections that are kept between them."""

    def __init__(self, connections: Connections, max_tokens: int) -> None:
        self._connections = connections
        self._target = connections.target
        self._max_tokens = max_tokens
        self._keyword = keyword(random.Random(secrets.token_hex(8)), "ascii", 0)

    async def of(self, gate: Gate) -> GateResult:
        tries: dict[Gate, Callable[[], Awaitable[GateResult]]] = {
            "models": self._models,
            "no_key": self._no_key,
            "chat_oneshot": lambda: self._one("chat_oneshot", "chat"),
            "chat_two_turn": self._two_turns,
            "chat_stream": lambda: self._one("chat_stream", "chat", stream=True),
            "responses": lambda: self._one("responses", "responses"),
            "responses_stream": lambda: self._one("responses_stream", "responses", stream=True),
            "state": self._state,
        }
        return await tries[gate]()

    async def _models(self) -> GateResult:
        exchange = await self._connections.exchange("GET", "/v1/models")
        fault = _fault_of(exchange)
        if fault is not None:
            return self._failed("models", [exchange], failure_of(fault, **_told(exchange), asked_responses=False))
        names = _listed(exchange)
        if not names:
            return self._failed("models", [exchange], Failure("bad_json", _beginning(exchange.body)))
        if not any(is_called(name, (self._target.model,)) for name in names):
            return self._failed("models", [exchange], Failure("model_missing", ", ".join(names)))
        return self._passed("models", [exchange])

    async def _no_key(self) -> GateResult:
        target = self._target
        if target.key is None and target.place == "engine":
            meaning = OWN["no_key_to_check"]
            return GateResult(
                gate="no_key", passed=None, kind="no_key_to_check", reason=meaning.what, next=meaning.next
            )
        wrong = Key(f"sk-sekisho-{secrets.token_urlsafe(32)}")
        seen: list[Exchange] = []
        readable = True
        for key in (None, wrong):
            stranger = Target(target.place, target.url, target.model, key)
            async with Connections(stranger, self._connections.limits) as connections:
                seen.append(await send(connections, self._question("chat", ((("user", _HELLO)),), stream=False)))
            last = seen[-1]
            if last.status is None:
                fault = Fault(last.trouble or "no_answer", last.detail)
                return self._failed("no_key", seen, failure_of(fault, status=None, code=None, asked_responses=False))
            if 200 <= last.status < 300:
                return self._failed("no_key", seen, Failure("let_in", server_words(last)))
            if last.status not in (401, 403):
                return self._failed("no_key", seen, Failure("not_turned_away", server_words(last)))
            readable = readable and isinstance(_json(last.body), dict)
        note = (
            ("", "")
            if readable
            else ("turned away without JSON, which clients show badly", "拒否の応答が JSON ではありません")
        )
        return self._passed("no_key", seen, note=note)

    async def _one(self, gate: Gate, api: Literal["chat", "responses"], *, stream: bool = False) -> GateResult:
        question = self._question(api, (("user", _HELLO),), stream=stream)
        exchange, answer = await self._ask(question)
        return self._judged(gate, [(question, exchange, answer)])

    async def _two_turns(self) -> GateResult:
        said: tuple[tuple[str, str], ...] = (("user", SET["en"].format(keyword=self._keyword)),)
        first = self._question("chat", said)
        asked = [(first, *await self._ask(first))]
        if asked[0][2].ok:
            said = (*said, ("assistant", asked[0][2].text), ("user", AGAIN["en"]))
            second = self._question("chat", said)
            asked.append((second, *await self._ask(second)))
        return self._judged("chat_two_turn", asked, note=self._kept(asked[-1][2]))

    async def _state(self) -> GateResult:
        first = self._question("responses", (("user", SET["en"].format(keyword=self._keyword)),))
        asked = [(first, *await self._ask(first))]
        answer = asked[0][2]
        if not answer.ok or not answer.id:
            return self._judged("state", asked)
        follow = (("user", AGAIN["en"]),)
        second = msgspec.structs.replace(self._question("responses", follow), previous=answer.id)
        asked.append((second, *await self._ask(second)))
        if not asked[1][2].ok:
            return self._judged("state", asked)
        note = self._kept(asked[1][2])
        made_up = msgspec.structs.replace(second, previous=f"resp_{secrets.token_hex(12)}")
        exchange = await send(self._connections, made_up)
        if exchange.status is not None and 200 <= exchange.status < 300:
            exchanges = [exchange for _, exchange, _ in asked]
            failure = Failure("state_ignored", _beginning(exchange.body))
            return self._failed("state", [*exchanges, exchange], failure, note=note)
        return self._judged("state", asked, note=note)

    def _question(
        self, api: Literal["chat", "responses"], said: tuple[tuple[str, str], ...], *, stream: bool = False
    ) -> Question:
        return Question(api=api, said=said, max_tokens=self._max_tokens, stream=stream)

    async def _ask(self, question: Question) -> tuple[Exchange, Answer]:
        exchange = await send(self._connections, question)
        expected = Expected((self._target.model,), question.stream, question.max_tokens)
        return exchange, read(question.api, exchange, expected)

    def _kept(self, answer: Answer) -> Words:
        if not answer.ok:
            return ("", "")
        if self._keyword in answer.text:
            return ("the second turn knew the first", "2 ターン目は 1 ターン目の内容を維持しました")
        return (
            "the second turn did not repeat the keyword of the first: small models forget; see sekisho continuity",
            "2 ターン目が 1 ターン目のキーワードを返しませんでした。小さなモデルでは起こります（sekisho continuity）",
        )

    def _judged(
        self, gate: Gate, asked: Sequence[tuple[Question, Exchange, Answer]], note: Words = ("", "")
    ) -> GateResult:
        """By the first answer with a failing fault."""
        exchanges = [exchange for _, exchange, _ in asked]
        faults = tuple(fault for _, _, answer in asked for fault in answer.faults)
        for number, (question, exchange, answer) in enumerate(asked):
            failing = first_failing(answer.faults)
            if failing is None:
                continue
            failure = failure_of(failing, **_told(exchange), asked_responses=question.api == "responses")
            if gate == "state" and number == 1 and exchange.status is not None and failure.kind in _LOSES_STATE:
                failure = Failure("state_lost", failing.detail)
            return self._failed(gate, exchanges[: number + 1], failure, faults, note)
        return self._passed(gate, exchanges, faults, note)

    def _passed(
        self, gate: Gate, exchanges: Sequence[Exchange], faults: tuple[Fault, ...] = (), note: Words = ("", "")
    ) -> GateResult:
        return GateResult(
            gate=gate,
            passed=True,
            faults=faults,
            status=exchanges[-1].status,
            ms=sum(exchange.total_ms for exchange in exchanges),
            note=note,
        )

    def _failed(
        self,
        gate: Gate,
        exchanges: Sequence[Exchange],
        failure: Failure,
        faults: tuple[Fault, ...] = (),
        note: Words = ("", ""),
    ) -> GateResult:
        meaning = failure.meaning
        return GateResult(
            gate=gate,
            passed=False,
            kind=failure.kind,
            faults=tuple(Fault(fault.kind, self._without_key(fault.detail)) for fault in faults),
            reason=meaning.what,
            next=meaning.next,
            status=exchanges[-1].status,
            ms=sum(exchange.total_ms for exchange in exchanges),
            words=self._without_key(failure.words),
            note=note,
        )

    def _without_key(self, words: str) -> str:
        """Servers may repeat the key that they refuse; the end of what was cut may be the beginning of it."""
        if self._target.key is None:
            return words[:WORDS_CHARS]
        secret, shown = self._target.key.reveal(), str(self._target.key)
        words = words.replace(secret, shown)[:WORDS_CHARS]
        for length in range(len(secret), _SHORTEST_PART - 1, -1):
            if words.endswith(secret[:length]):
                return words[:-length] + shown
        return words


_LOSES_STATE = frozenset({"lacks_api", "not_found", "client_error", "server_error", "no_id", "empty_answer"})


def _fault_of(exchange: Exchange) -> Fault | None:
    """What keeps an answer that is no generation from being read."""
    if exchange.trouble is not None:
        return Fault(exchange.trouble, exchange.detail)
    kind = by_status(exchange.status or 0)
    if kind is not None:
        return Fault(kind, server_words(exchange))
    return None if exchange.body.strip() else Fault("empty_body")


def _told(exchange: Exchange) -> dict[str, Any]:
    """Status and the error's code, as `failure_of` takes them."""
    error = _json(exchange.body)
    error = error.get("error") if isinstance(error, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    return {"status": exchange.status, "code": code if isinstance(code, str) else None}


def _listed(exchange: Exchange) -> tuple[str, ...]:
    value = _json(exchange.body)
    data = value.get("data") if isinstance(value, dict) else None
    entries = data if isinstance(data, list) else []
    return tuple(e["id"] for e in entries if isinstance(e, dict) and isinstance(e.get("id"), str) and e["id"])


def _json(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _beginning(body: bytes) -> str:
    return body.decode(errors="replace").strip()
