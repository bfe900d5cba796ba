"""How commands talk to the control agent: its address is in `run/agent.json`, its token in the home's secrets."""

import json
import os
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

from sekisho.cli.failure import ABSENT, FAILED, USAGE, CommandFailed

if TYPE_CHECKING:
    from sekisho.ops.home import Home

TIMEOUT_S = 10.0
# For the longest of them: a full measurement, which has half an hour for the engine as it is and as long again for its
# baseline. A swap, which lets running answers end first, takes less.
CHANGE_TIMEOUT_S = 4000.0
URL_ENV = "INFEROS_AGENT_URL"


class AgentClient:
    """Raises CommandFailed: where nobody answers, and with the agent's own words where it refuses."""

    def __init__(self, url: str, token: str | None) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._token = token
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def get(self, path: str, timeout_s: float = TIMEOUT_S) -> Any:
        return self._ask(urllib.request.Request(self.url + path), timeout_s)

    def post(self, path: str, body: Any) -> Any:
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), method="POST")
        request.add_header("Content-Type", "application/json")
        if self._token:
            request.add_header("X-Inferos-Token", self._token)
        return self._ask(request, CHANGE_TIMEOUT_S)

    def _ask(self, request: urllib.request.Request, timeout_s: float) -> Any:
        try:
            with self._opener.open(request, timeout=timeout_s) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                raise _refusal(error.code, error.read()) from error
        except (OSError, ValueError) as error:
            why = getattr(error, "reason", error)
            hint = "sekisho up starts it; sekisho status"
            raise CommandFailed(
                f"the agent at {self.url} does not answer: {why}", hint=hint, exit_code=ABSENT
            ) from error


def _refusal(code: int, body: bytes) -> CommandFailed:
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    if isinstance(answer, dict) and "error" not in answer:  # a policy that no engine took
        reasons = [each.get("reason") for each in answer.get("applied", ()) if isinstance(each, dict)]
        told = "; ".join(dict.fromkeys(reason for reason in reasons if reason)) or f"HTTP {code}"
        return CommandFailed(f"no engine took the change: {told}", exit_code=FAILED, details={"answer": answer})
    error = answer["error"] if isinstance(answer, dict) and isinstance(answer.get("error"), dict) else {}
    message = error.get("message") or f"the agent answered HTTP {code}"
    details = error.get("details")
    text = f"{message}: {details}" if isinstance(details, str) else message
    return CommandFailed(text, exit_code=USAGE if code in (400, 404) else FAILED, details={"agent": error})


def agent_client(home: "Home", url: str | None = None) -> AgentClient:
    """`url` first, then INFEROS_AGENT_URL, then what the server of this home wrote down. Raises CommandFailed."""
    from sekisho.control.address import read_address, read_token

    chosen = url or os.environ.get(URL_ENV) or read_address(home.run)
    if chosen is None:
        raise CommandFailed(f"no agent runs from {home.path}", hint="sekisho up", exit_code=ABSENT)
    return AgentClient(chosen, read_token(home.secrets))
