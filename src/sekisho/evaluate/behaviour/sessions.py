"""Working sessions of both client patterns, as requests on the wire: streams of many requests with growing history.

`responses`: requests shaped as Codex sends them; it is not Codex itself (`codex_run` is), and it never tries again.
`chat`: requests shaped as chat pages send them. A task ends with its first request that goes wrong.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal, get_args

import msgspec

from sekisho.core.errors import InvalidRequest
from sekisho.evaluate.behaviour.session_tasks import SESSION_TASKS, SessionTask
from sekisho.evaluate.client.answer import Answer, Expected
from sekisho.evaluate.client.answer_apis import read
from sekisho.evaluate.client.asking import PATHS
from sekisho.evaluate.client.exchange import Connections, Exchange, Limits
from sekisho.evaluate.client.faults import FaultKind, first_failing
from sekisho.evaluate.client.target import Target
from sekisho.evaluate.figures import Figure
from sekisho.evaluate.progress import Progress, silent
from sekisho.evaluate.statistics import share_interval
from sekisho.wire.sse import FrameTooLong, SseDecoder

Mode = Literal["responses", "chat"]
Outcome = Literal["ok", "connection", "cut", "protocol", "refused", "no_text"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)

SESSION_LIMITS = Limits(silence_s=300.0, total_s=3600.0)
"""Codex waits 300 s for the next event, and as long as they come: a steady long answer is no cut."""
MOST_TOOL_ROUNDS = 4
DETAIL_CHARS = 300

_NOT_CONNECTED: frozenset[FaultKind] = frozenset({
    "not_connected", "not_http", "redirect", "unauthorized", "forbidden", "not_found", "rate_limited", "client_error",
    "server_error",
})  # fmt: skip
_CUT: frozenset[FaultKind] = frozenset({
    "no_answer", "silent", "trickled", "cut", "too_large", "empty_body", "no_end", "error_in_stream",
})  # fmt: skip


class SessionPlan(msgspec.Struct, frozen=True, kw_only=True):
    """`tasks`: how many of the twenty. `parallel`: how many at a time. `prompt_chars`: how long the instructions are
    made; Codex sends about 39,000, for which small models have no room. `max_tokens` None: not sent, as Codex does.

    Raises InvalidRequest for numbers that make no session.
    """

    mode: Mode
    tasks: int = len(SESSION_TASKS)
    parallel: int = 1
    prompt_chars: int = 0
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.tasks <= len(SESSION_TASKS):
            raise InvalidRequest(f"1 to {len(SESSION_TASKS)} tasks", param="tasks")
        if self.parallel < 1 or self.prompt_chars < 0 or (self.max_tokens is not None and self.max_tokens < 1):
            raise InvalidRequest("at least 1 in parallel, 0 characters, 1 token", param="parallel")


class SessionResult(msgspec.Struct, frozen=True, kw_only=True):
    """How a task went. `outcome`: connection (not connected, or not taken: no 2xx), cut (cut off or hung), protocol,
    refused (by the guard), no_text. `faults` and `detail` (the server's words, cut) are of the request that went
    wrong; without one, `faults` are those that fail nothing."""

    task: str
    outcome: Outcome
    requests: int
    faults: tuple[str, ...] = ()
    detail: str = ""
    ms: float = 0.0


Step = Callable[[str, Callable[[], Awaitable[SessionResult]]], Awaitable[SessionResult]]
"""`(key, work)`: does the work, or gives what it gave before. The evaluation's journal is one."""


async def at_once(key: str, work: Callable[[], Awaitable[SessionResult]]) -> SessionResult:
    return await work()


async def run(
    target: Target,
    plan: SessionPlan,
    progress: Progress = silent,
    *,
    limits: Limits = SESSION_LIMITS,
    step: Step = at_once,
    tasks: Sequence[SessionTask] = SESSION_TASKS,
) -> tuple[SessionResult, ...]:
    """Plays the first of the tasks, in their order. Raises only what `step` raises."""
    tasks = tasks[: plan.tasks]
    turn = asyncio.Semaphore(plan.parallel)
    done = 0

    async def one(connections: Connections, task: SessionTask) -> SessionResult:
        nonlocal done
        async with turn:
            session = _Codex(connections, plan, task) if plan.mode == "responses" else _Page(connections, plan, task)
            result = await step(f"{plan.mode}-{task.id}", session.play)
        done += 1
        progress(f"sessions {plan.mode}", done, len(tasks))
        return result

    progress(f"sessions {plan.mode}", 0, len(tasks))
    async with Connections(target, limits) as connections, asyncio.TaskGroup() as group:
        played = [group.create_task(one(connections, task)) for task in tasks]
    return tuple(each.result() for each in played)


class _Session:
    """One task: its requests follow each other, each with everything that was said before."""

    api: Literal["chat", "responses"]

    def __init__(self, connections: Connections, plan: SessionPlan, task: SessionTask) -> None:
        self._connections = connections
        self._target = connections.target
        self._plan = plan
        self._task = task
        self._requests = 0
        self._ms = 0.0
        self._seen: dict[str, None] = {}

    async def play(self) -> SessionResult:
        for prompt in self._task.prompts:
            wrong = await self._turn(prompt)
            if wrong is not None:
                return wrong
        return self._result("ok", tuple(self._seen))

    async def _turn(self, prompt: str) -> SessionResult | None:
        raise NotImplementedError

    async def _ask(self, body: dict[str, Any], *, text: bool) -> tuple[Exchange, Answer]:
        exchange = await self._connections.exchange("POST", PATHS[self.api], msgspec.json.encode(body))
        answer = read(self.api, exchange, Expected((self._target.model,), True, self._plan.max_tokens, text))
        self._requests += 1
        self._ms += exchange.total_ms
        self._seen |= dict.fromkeys(fault.kind for fault in answer.faults)
        return exchange, answer

    def _wrong(self, answer: Answer) -> SessionResult | None:
        failing = first_failing(answer.faults)
        if failing is None:
            return None
        return self._result(outcome_of(failing.kind), tuple(fault.kind for fault in answer.faults), failing.detail)

    def _result(self, outcome: Outcome, faults: tuple[str, ...] = (), detail: str = "") -> SessionResult:
        key = self._target.key
        if key is not None:
            detail = detail.replace(key.reveal(), str(key))
        return SessionResult(
            task=self._task.id,
            outcome=outcome,
            requests=self._requests,
            faults=faults,
            detail=detail[:DETAIL_CHARS],
            ms=self._ms,
        )


def outcome_of(kind: FaultKind) -> Outcome:
    """What a failing fault makes of its task."""
    if kind in _NOT_CONNECTED:
        return "connection"
    if kind in _CUT:
        return "cut"
    return "refused" if kind == "refused" else "no_text" if kind == "empty_answer" else "protocol"


class _Page(_Session):
    """A chat page: a system message, the whole conversation each time, streamed with usage."""

    api = "chat"

    def __init__(self, connections: Connections, plan: SessionPlan, task: SessionTask) -> None:
        super().__init__(connections, plan, task)
        self._messages = [{"role": "system", "content": _instructions(plan.prompt_chars)}]

    async def _turn(self, prompt: str) -> SessionResult | None:
        self._messages.append({"role": "user", "content": prompt})
        body: dict[str, Any] = {
            "model": self._target.model,
            "messages": self._messages,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self._plan.max_tokens is not None:
            body["max_tokens"] = self._plan.max_tokens
        _, answer = await self._ask(body, text=True)
        self._messages.append({"role": "assistant", "content": answer.text})
        return self._wrong(answer)


class _Codex(_Session):
    """Requests in Codex' shape. What it takes for an item is `response.output_item.done` alone; calls of tools are
    answered as not run, up to `MOST_TOOL_ROUNDS` times a turn."""

    api = "responses"

    def __init__(self, connections: Connections, plan: SessionPlan, task: SessionTask) -> None:
        super().__init__(connections, plan, task)
        self._thread = str(uuid.uuid4())
        developer = (_instructions(plan.prompt_chars), "<environment>workspace: /work, shell: bash</environment>")
        self._input: list[dict[str, Any]] = [_message("developer", text) for text in developer]

    async def _turn(self, prompt: str) -> SessionResult | None:
        self._input.append(_message("user", prompt))
        for _ in range(1 + MOST_TOOL_ROUNDS):
            exchange, answer = await self._ask(self._body(), text=False)
            wrong = self._wrong(answer)
            if wrong is not None:
                return wrong
            items = finished_items(exchange)
            if answer.text and not any(item.get("type") == "message" for item in items):
                return self._result("protocol", ("item_not_done",), "text came, but no finished item with it")
            self._input += items
            calls = [item for item in items if item.get("type") == "function_call"]
            if not calls:
                break
            self._input += [_output_of(call) for call in calls]
        only_thought = any(fault.kind == "only_reasoning" for fault in answer.faults)
        said = answer.text.strip() or calls or only_thought
        return None if said else self._result("no_text", ("empty_answer",))

    def _body(self) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._target.model,
            "input": self._input,
            "tools": TOOLS,
            "tool_choice": "auto",
            "parallel_tool_calls": True,
            "reasoning": {"summary": "auto"},
            "store": False,
            "stream": True,
            "include": ["reasoning.encrypted_content"],
            "prompt_cache_key": self._thread,
            "client_metadata": {"session": self._thread},
        }
        if self._plan.max_tokens is not None:
            body["max_output_tokens"] = self._plan.max_tokens
        return body


def _message(role: str, text: str) -> dict[str, Any]:
    return {"type": "message", "role": role, "content": [{"type": "input_text", "text": text}]}


def _output_of(call: dict[str, Any]) -> dict[str, Any]:
    output = "Not run: this session only measures. Answer without it."
    return {"type": "function_call_output", "call_id": call.get("call_id"), "output": output}


def _instructions(chars: int) -> str:
    """Instructions, filled up with plain rules to about `chars` characters."""
    rules = ["You help with code. Answer in the language of the question. Be short."]
    length = len(rules[0])
    while length < chars:
        rule = f"Rule {len(rules)}: name things by what they are, keep functions short, and test what you change."
        rules.append(rule)
        length += len(rule) + 1
    return "\n".join(rules)


def _function(name: str, description: str, *parameters: str) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": {parameter: {"type": "string"} for parameter in parameters},
        "required": list(parameters),
        "additionalProperties": False,
    }
    return {"type": "function", "name": name, "description": description, "strict": False, "parameters": schema}


TOOLS: list[dict[str, Any]] = [
    _function("exec_command", "Runs a command in the workspace.", "cmd"),
    _function("update_plan", "Notes what is to be done.", "plan"),
    {
        "type": "namespace",
        "name": "agents",
        "description": "Other agents.",
        "tools": [_function("spawn_agent", "Starts an agent.", "task"), _function("close_agent", "Ends it.", "target")],
    },
    {"type": "web_search"},
]


def finished_items(exchange: Exchange) -> list[dict[str, Any]]:
    """The items of a stream's `response.output_item.done` events, in their order."""
    decoder, items = SseDecoder(), []
    try:
        events = decoder.feed(exchange.body)
    except FrameTooLong:
        return []
    for event in events:
        try:
            value = msgspec.json.decode(event.data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        if isinstance(value, dict) and value.get("type") == "response.output_item.done":
            item = value.get("item")
            if isinstance(item, dict):
                items.append(item)
    return items


def figures(
    results: Sequence[SessionResult], mode: Mode, *, command: str = "", file: str = "sessions.json"
) -> list[Figure]:
    """`sessions.<mode>.tasks`, `.connection_failures`, `.cuts`, and `.completed`, the share of tasks without
    anything wrong. What else went wrong is in the note of `.tasks`."""
    return counted(results, f"sessions.{mode}", command=command, file=file)


def counted(results: Sequence[SessionResult], prefix: str, *, command: str, file: str) -> list[Figure]:
    counts = {outcome: sum(result.outcome == outcome for result in results) for outcome in OUTCOMES}
    others: tuple[Outcome, ...] = ("protocol", "refused", "no_text")
    note = ", ".join(f"{outcome}: {counts[outcome]}" for outcome in others if counts[outcome])
    values = {"tasks": len(results), "connection_failures": counts["connection"], "cuts": counts["cut"]}
    figures = [
        Figure(
            id=f"{prefix}.{name}",
            value=value,
            unit="count",
            n=len(results),
            command=command,
            file=file,
            note=note if name == "tasks" else "",
        )
        for name, value in values.items()
    ]
    completed = Figure(
        id=f"{prefix}.completed",
        value=counts["ok"] / len(results) if results else None,
        unit="share",
        n=len(results),
        interval=share_interval(counts["ok"], len(results)),
        why_null="" if results else "no task was run",
        command=command,
        file=file,
    )
    return [*figures, completed]
