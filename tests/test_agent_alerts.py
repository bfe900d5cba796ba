"""An agent that stays dead is told to people by the supervisor, which alone can see it."""

import asyncio
import json
import logging
import os
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from sekisho.control.config import ControlConfig
from sekisho.core.clock import SystemClock
from sekisho.guard.notify import ID_HEADER, SIGNATURE_HEADER, verify
from sekisho.ops.children_file import ChildStatus
from sekisho.ops.restart_policy import RestartPolicy
from sekisho.ops.supervisor import ChildSpec, Supervisor
from sekisho.serve.agent_alerts import AgentAlerts

STEADY_S = 50.0  # of the loop's clock, which the test moves on: a slow start of a child must not pass for a steady run
QUICK = RestartPolicy(first_delay_s=0.01, max_delay_s=0.05, reset_after_s=STEADY_S)
KEY_ENV = "SEKISHO_TEST_WEBHOOK_KEY"


@pytest.fixture
async def arrived() -> AsyncIterator[tuple[str, "asyncio.Queue[tuple[dict[str, str], bytes]]"]]:
    """A webhook's address, and what it was sent."""
    told: asyncio.Queue[tuple[dict[str, str], bytes]] = asyncio.Queue()

    async def take(request: web.Request) -> web.Response:
        told.put_nowait((dict(request.headers), await request.read()))
        return web.Response()

    application = web.Application()
    application.router.add_post("/", take)
    async with TestServer(application) as server:
        yield str(server.make_url("/")), told


@pytest.mark.skipif(os.name != "posix", reason="process groups and signals are those of POSIX")
async def test_an_agent_that_stays_dead_is_told_once_and_so_is_its_return(
    arrived: tuple[str, "asyncio.Queue[tuple[dict[str, str], bytes]]"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real child in a crash loop: a signed alert, without a line of its log; none for each further try, and one when
    it has run for a while. Another child that crashes is not its business."""
    url, told = arrived
    monkeypatch.setenv(KEY_ENV, "secret")
    alerts = AgentAlerts(ControlConfig(webhook_url=url, webhook_key_env=KEY_ENV))
    mended, runs = tmp_path / "mended", tmp_path / "agent.pid"
    code = (
        "import os, sys, time; print('no room on the disk')\n"
        f"if not os.path.exists({str(mended)!r}): sys.exit(3)\n"
        "with open(sys.argv[1] + '.pid', 'w') as file: file.write(str(os.getpid()))\n"
        "time.sleep(600)"
    )
    children = [
        ChildSpec(name, (sys.executable, "-u", "-S", "-c", code, str(tmp_path / name)), tmp_path / f"{name}.log")
        for name in ("agent", "engine")
    ]
    async with (
        asyncio.timeout(60 + STEADY_S),
        Supervisor(tmp_path, children, policy=QUICK, on_change=alerts.changed) as supervisor,
    ):
        headers, body = await told.get()
        assert verify("secret", headers[SIGNATURE_HEADER], headers[ID_HEADER], body, SystemClock().now())
        alert = json.loads(body)["alert"]
        assert b"no room" not in body
        assert (alert["kind"], alert["subject"], alert["severity"]) == ("agent.dead", "agent", "critical")
        assert "(exit code 3); sekisho status" in alert["text"]
        tries = supervisor.status("agent").restarts
        while supervisor.status("agent").restarts < tries + 3:  # noqa: ASYNC110 - another process, no event to wait for
            await asyncio.sleep(0.01)
        assert told.empty()
        mended.touch()
        while not runs.exists() or runs.read_text() != str(supervisor.status("agent").pid):  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "time", lambda: time.monotonic() + STEADY_S)
        alert = json.loads((await told.get())[1])["alert"]
        assert (alert["severity"], alert["text"]) == ("info", "the control agent runs again")
    await alerts.close()
    assert told.empty()


async def test_without_a_webhook_the_log_has_it(caplog: pytest.LogCaptureFixture) -> None:
    """One that its settings keep from starting says what a person must do; an agent that comes back at once is no
    news."""
    alerts = AgentAlerts(ControlConfig())
    for state in ("starting", "running", "waiting", "running", "stopping", "stopped"):
        alerts.changed(ChildStatus("agent", state))
    assert caplog.records == []
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            alerts.changed(ChildStatus("agent", "misconfigured", exit_code=78))
        alerts.changed(ChildStatus("agent", "stopped"))
    (record,) = caplog.records
    assert record.levelno == logging.CRITICAL
    assert "until a person mends its settings (exit code 78)" in record.getMessage()
    await alerts.close()
    await alerts.close()
