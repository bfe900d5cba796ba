"""Faults of real processes under a running server, for the table of bench/control_faults.py: seconds are real ones, of
this machine at that hour, and nothing is asserted about them. A client asks the same question all the while."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from e2e_harness import CHAT, Launch, Sekisho, chat, eventually

sys.path.append(str(Path(__file__).parents[1] / "control"))
from fault_table import Table, table_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(sys.platform != "linux", reason="signals and limits of other processes are set the Linux way"),
]
# This machine is shared: an agent that balances would answer others' load, one that measures would make some.
AGENT = "control: {act: [fallback], quality: {enabled: false}}\n"
DOWN = "fallback.engine_down"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Table]:
    yield from table_of("real", tmp_path_factory)


class Client(threading.Thread):
    """Asks one short question after the other."""

    def __init__(self, sekisho: Sekisho) -> None:
        super().__init__(daemon=True)
        self.answered = 0
        self.broken: list[str] = []
        self.longest_s = 0.0
        self._sekisho = sekisho
        self._ended = threading.Event()
        self.start()
        assert eventually(lambda: self.answered), self.broken

    def run(self) -> None:
        headers = {"authorization": f"Bearer {self._sekisho.key}"}
        body = chat("Hello", "mini", max_tokens=3)
        with httpx.Client(base_url=self._sekisho.url, headers=headers, timeout=120.0) as client:
            while not self._ended.is_set():
                began_s = time.monotonic()
                try:
                    answer = client.post(CHAT, json=body)
                except httpx.HTTPError as error:
                    self.broken.append(repr(error))
                    continue
                if answer.status_code == 200:
                    self.answered += 1
                else:
                    self.broken.append(f"{answer.status_code} {answer.json()['error'].get('code')}")
                self.longest_s = max(self.longest_s, time.monotonic() - began_s)

    def end(self) -> str:
        """In words."""
        self._ended.set()
        self.join(150)
        assert not self.is_alive(), "a client hangs"
        kinds = ", ".join(sorted(set(self.broken)))
        broken = f"{len(self.broken)} broken ({kinds})" if self.broken else "none broken"
        return f"{self.answered} answered, {broken}, longest {self.longest_s:.1f} s"


class Watching:
    """The server with its agent, and how long things take from `begin` on."""

    def __init__(self, launch: Launch, model: str) -> None:
        from sekisho.control.address import read_address

        models = f"  - {{name: mini, path: {model}, context: 512, slots: 4, threads: 1}}\n"
        self.sekisho: Sekisho = launch(models, gateway=AGENT, agent=True)
        self.sekisho.up()
        self._read_address = read_address
        assert eventually(lambda: self.health().get("status") == "healthy", 60), self.health()
        self.worker = self.sekisho.child("engine-mini").pid or 0
        self.client = Client(self.sekisho)

    def begin(self) -> None:
        self._began_s = time.monotonic()
        self._at = time.time()

    @property
    def passed_s(self) -> float:
        return time.monotonic() - self._began_s

    def ask(self, path: str) -> dict[str, Any]:
        """Empty while the agent does not answer."""
        url = self._read_address(self.sekisho.home.run)
        if url is None:
            return {}
        try:
            told: dict[str, Any] = httpx.get(url + path, timeout=30.0).json()
        except httpx.HTTPError:
            return {}
        return told

    def health(self) -> dict[str, Any]:
        return self.ask("/v1/health")

    def decided(self, rule: str, since: float | None = None) -> list[dict[str, Any]]:
        """Since the beginning, by the start of the rule's name."""
        told = self.ask("/v1/decisions").get("decisions") or ()
        since = self._at if since is None else since
        return [each for each in told if each["rule"].startswith(rule) and each["at"] >= since]

    def after_s(self, decision: dict[str, Any]) -> float:
        return float(decision["at"]) - self._at

    def context(self) -> tuple[Any, Any]:
        """As the policy says, and as the engine tells."""
        engine = self.ask("/v1/metrics")["engines"][0]
        return self.ask("/v1/policy")["engine"]["context"], engine["kv"]["limit_bytes"]

    def other_worker(self) -> bool:
        return self.sekisho.child("engine-mini").pid not in (self.worker, None)


def _until(text: str, mark: str) -> str:
    return text.partition(mark)[0]


def test_engine_killed(launch: Launch, small_model: str, table: Table) -> None:
    """The supervisor starts it again and the client goes on; the agent tells of it only if two of its looks fall into
    the time without an engine."""
    here = Watching(launch, small_model)
    here.begin()
    os.kill(here.worker, signal.SIGKILL)
    answered = here.client.answered
    assert eventually(here.other_worker, 60)
    restarted_s = here.passed_s
    assert eventually(lambda: here.client.answered > answered + 1, 60)
    well_s = here.passed_s
    time.sleep(max(0.0, 11.0 - here.passed_s))  # two looks
    assert eventually(lambda: here.health().get("status") == "healthy", 60)
    told = here.decided(DOWN)
    seen = here.decided("engine_back")
    table.add(
        "engine killed",
        injected="kill -9 of the worker",
        detected_s=restarted_s,
        detected_by="the supervisor: its child ended; the agent "
        + (f"told it after {here.after_s(told[0]):.1f} s" if told else "had nothing to tell: it was back in time"),
        action="started again by the supervisor" + ("; brought to the policy again" if seen else ""),
        recovered_s=well_s,
        recovered_since="after the kill: the client is answered again",
        clients=here.client.end(),
    )


def test_engine_hung(launch: Launch, small_model: str, table: Table) -> None:
    """It is told as critical and goes on as soon as it may; nobody restarts it, and no client's turn is lost."""
    here = Watching(launch, small_model)
    here.begin()
    try:
        os.kill(here.worker, signal.SIGSTOP)
        told = eventually(lambda: here.decided(DOWN), 120)
        assert told, here.health()
        assert "did not tell its state" in told[0]["why"]
        time.sleep(5)
        assert here.sekisho.child("engine-mini").pid == here.worker
        stopped_s = here.passed_s
    finally:
        os.kill(here.worker, signal.SIGCONT)
    on = time.time()
    answered = here.client.answered
    assert eventually(lambda: here.client.answered > answered + 1, 60)
    over = eventually(lambda: here.decided(DOWN, on), 120)
    assert over
    assert eventually(lambda: here.health().get("status") == "healthy", 60)
    table.add(
        "engine hung",
        injected=f"SIGSTOP of the worker for {stopped_s:.0f} s",
        detected_s=here.after_s(told[0]),
        detected_by=f"no state within 5 s at two looks: {DOWN}",
        action="critical alert; nobody restarts it: a person must",
        recovered_s=float(over[0]["at"]) - on,
        recovered_since="after SIGCONT: said to be over",
        clients=here.client.end(),
    )


def test_agent_killed(launch: Launch, small_model: str, table: Table) -> None:
    """The supervisor starts it again, with its policy; the client notices nothing."""
    here = Watching(launch, small_model)
    here.sekisho.json("policy", "set", "quality.max_delta_ppl=0.25")
    pid = here.sekisho.child("agent").pid
    assert pid
    here.begin()
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: here.sekisho.child("agent").pid not in (pid, None), 60)
    restarted_s = here.passed_s
    policy = eventually(lambda: here.ask("/v1/policy"), 60)
    well_s = here.passed_s
    assert policy["quality"]["max_delta_ppl"] == 0.25, policy
    assert eventually(lambda: here.health().get("status") == "healthy", 60)
    clients = here.client.end()
    assert here.client.broken == []
    table.add(
        "agent killed",
        injected="kill -9 of the agent",
        detected_s=restarted_s,
        detected_by="the supervisor: its child ended",
        action="started again by the supervisor; policy and history are on disk",
        recovered_s=well_s,
        recovered_since="after the kill: the agent answers, with its policy",
        clients=clients,
    )


def test_out_of_memory_on_load(launch: Launch, small_model: str, table: Table) -> None:
    """A worker that gets no memory for its KV cache ends; the change is told as failed, policy and engine are as
    before, and the client is answered all the while."""
    here = Watching(launch, small_model)
    supervisor = psutil.Process(here.sekisho.json("status")["pid"])
    room = psutil.Process(here.worker).memory_info().vms + 2**29
    # Inherited by what it starts from now on. Small stacks, so that it is not the threads that find no room.
    limits = {psutil.RLIMIT_AS: room, psutil.RLIMIT_STACK: 2**21}
    before = {kind: supervisor.rlimit(kind) for kind in limits}
    context = here.context()
    here.begin()
    for kind, limit in limits.items():
        supervisor.rlimit(kind, (limit, before[kind][1]))
    try:
        done = here.sekisho.run("policy", "set", "engine.slots=200", "engine.context=2048", "--json", timeout_s=200.0)
    finally:
        for kind, earlier in before.items():
            supervisor.rlimit(kind, earlier)
    told_s = here.passed_s
    (decision,) = here.decided("")
    assert decision["outcome"] == "failed", (done.stdout, done.stderr)
    assert here.context() == context
    log = (here.sekisho.home.logs / "engine-mini.log").read_text(errors="replace")
    assert "failed to allocate buffer for kv cache" in log
    answered = here.client.answered
    assert eventually(lambda: here.client.answered > answered + 1, 60)
    well_s = here.passed_s - told_s
    assert eventually(lambda: here.health().get("status") == "healthy", 60)
    table.add(
        "OOM on load",
        injected="200 slots of 2,048 tokens (1.9 GB of KV) where a worker may have 0.5 GB more than before",
        detected_s=told_s,
        detected_by=f"the swap's report: {_until(decision['applied'][0]['reason'], ': error')}",
        action="the version before is in force again; the command says why",
        recovered_s=well_s,
        recovered_since="after that: the client is answered",
        clients=here.client.end(),
    )
