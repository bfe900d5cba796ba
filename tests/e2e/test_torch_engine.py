"""A model of the torch engine behind the gateway, as a person starts it."""

from pathlib import Path

import pytest
from e2e_harness import CHAT, Launch, chat, load_beside

pytestmark = [pytest.mark.kv, pytest.mark.slow, pytest.mark.timeout(300)]


def test_up_answers_through_the_torch_engine(launch: Launch, tmp_path: Path) -> None:
    """Settings name a model folder, a policy and a limit; `up` starts the worker; a chat is answered through the
    gateway, streamed and whole, and counted; `down` ends it."""
    folder = load_beside("engines").write_tiny_folder(tmp_path / "model")
    sekisho = launch(
        f"  - {{name: small, engine: torch, path: {folder}, context: 1024, slots: 2, threads: 1, devices: cpu,\n"
        "     kv: {budget: 0.25, recent_window: 32}, kv_limit_mib: 64}\n"
    )
    sekisho.up()
    client = sekisho.client()
    (model,) = [each for each in client.get("/v1/models").json()["data"] if each["id"] == "small"]
    assert model["context_length"] == 1024
    whole = client.post(CHAT, json=chat("hello", "small", max_tokens=8, temperature=0))
    assert whole.status_code == 200, whole.text
    assert 0 < whole.json()["usage"]["completion_tokens"] <= 8
    with client.stream("POST", CHAT, json=chat("hello", "small", max_tokens=8, temperature=0, stream=True)) as streamed:
        assert streamed.status_code == 200
        assert any(line == "data: [DONE]" for line in streamed.iter_lines())
    too_long = client.post(CHAT, json=chat("word " * 2000, "small"))
    assert (too_long.status_code, too_long.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert [child["state"] for child in sekisho.json("status")["children"]] == ["running"] * 2
    assert sekisho.json("down")["stopped"] is True
