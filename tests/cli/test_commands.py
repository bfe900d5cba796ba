"""Commands run in this process against a home of their own: words, JSON, exit codes."""

import csv
import io
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., tuple[int, str, str]]
pytestmark = pytest.mark.usefixtures("home")


def answer(call: Run, *arguments: str, code: int = 0) -> Any:
    """The JSON answer: the whole of standard output."""
    found, out, _ = call(*arguments, "--json")
    assert found == code, out
    return json.loads(out)


def test_keys_are_made_listed_rotated_and_revoked(sekisho: Run) -> None:
    """The secret is told once; afterwards only its last four characters are known."""
    made = answer(
        sekisho, "key", "create", "--name", "taro", "--models", "a,b", "--rpm", "60", "--tpm", "9000",
        "--parallel", "2", "--budget", "2M", "--budget", "20usd", "--scopes", "chat", "--allow-network", "10.0.0.0/8",
        "--expires", "30d",
    )  # fmt: skip
    assert made["key"].startswith("sk-sekisho-")
    assert (made["models"], made["rpm"], made["tpm"], made["parallel"]) == (["a", "b"], 60, 9000, 2)
    assert (made["budget_tokens"], made["budget_cost_micros"]) == (2_000_000, 20_000_000)
    assert (made["scopes"], made["networks"]) == (["chat"], ["10.0.0.0/8"])
    (listed,) = answer(sekisho, "key", "list")
    assert listed["last4"] == made["key"][-4:]
    code, out, _ = sekisho("key", "list")
    assert code == 0
    assert made["id"] in out
    assert made["key"] not in out + json.dumps(listed)
    rotated = answer(sekisho, "key", "rotate", "taro", "--grace", "2h")
    assert rotated["key"] != made["key"]
    assert rotated["id"] == made["id"]
    assert answer(sekisho, "key", "revoke", made["id"])["revoked_at"]
    assert answer(sekisho, "key", "list") == []
    assert len(answer(sekisho, "key", "list", "--all")) == 1


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["key", "create", "--name", "a", "--budget", "lots"], 2),
        (["key", "create", "--name", "a", "--scopes", "root"], 2),
        (["key", "create", "--name", "a", "--allow-network", "everywhere"], 2),
        (["key", "create", "--name", "a", "--rpm", "0"], 2),
        (["key", "create"], 2),
        (["key", "revoke", "nobody"], 3),
        (["key", "rotate", "nobody"], 3),
        (["usage", "--by", "frog"], 2),
        (["usage", "--month", "soon"], 2),
        (["usage", "--csv"], 2),
        (["status"], 3),
        (["down"], 3),
        (["up", "--model", "nothing"], 2),
        (["up", "--port", "99999"], 2),
        (["client", "netscape"], 2),
        (["client", "codex", "--model", "nothing"], 2),
        (["model", "add", "x"], 2),
        (["model", "add", "x", "--path", "/no/such.gguf"], 3),
        (["model", "pull", "nothing"], 3),
        (["model", "recommend", "--kv-type", "q9"], 2),
        (["model", "export", "other", "--to", "x"], 3),
        (["frobnicate"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_failures_are_told_with_a_code(sekisho: Run, arguments: list[str], code: int) -> None:
    """Each failure has its exit code, as words on standard error or as JSON on standard output, without a trace."""
    found, out, err = sekisho(*arguments) if arguments != ["usage", "--csv"] else sekisho(*arguments, "--json")
    assert found == code
    if arguments != ["usage", "--csv"]:
        assert out == ""
        assert err.startswith("error: ")
        assert "Traceback" not in err
    error = answer(sekisho, *arguments, code=code)["error"]
    assert error["exit_code"] == code
    assert error["message"]


def test_debug_shows_where_it_arose(sekisho: Run) -> None:
    """--debug, anywhere in the line, adds the trace to the same message and the same code."""
    code, _, err = sekisho("key", "revoke", "nobody", "--debug")
    assert code == 3
    assert "Traceback" in err
    assert "error: " in err


def test_settings_errors_end_with_two_and_places(sekisho: Run, home: Path) -> None:
    """Any command that reads the settings tells their faults with line and column, as data in JSON."""
    home.mkdir()
    (home / "sekisho.yaml").write_text("gateway:\n  prot: 1\n")
    code, _, err = sekisho("config", "check")
    assert code == 2
    assert "sekisho.yaml:2:3: gateway.prot" in err
    (problem,) = answer(sekisho, "key", "list", code=2)["error"]["problems"]
    assert (problem["line"], problem["column"], problem["path"]) == (2, 3, "gateway.prot")


def test_config_init_show_path(sekisho: Run, home: Path) -> None:
    """`init` writes a private file that is good, and does not replace one unasked; `show` tells what is in force."""
    assert answer(sekisho, "config", "path")["exists"] is False
    assert answer(sekisho, "config", "init")["path"] == str(home / "sekisho.yaml")
    if os.name == "posix":
        assert stat.S_IMODE((home / "sekisho.yaml").stat().st_mode) == 0o600
    assert answer(sekisho, "config", "check")["ok"] is True
    assert sekisho("config", "init")[0] == 1
    assert sekisho("config", "init", "--force")[0] == 0
    assert answer(sekisho, "config", "show")["settings"]["gateway"]["port"] == 7010


def test_config_show_hides_the_database_password(sekisho: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A password in DATABASE_URL is not printed, in neither form."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:hunter2@db/sekisho")
    for arguments in (("config", "show"), ("config", "show", "--json")):
        code, out, _ = sekisho(*arguments)
        assert code == 0
        assert "hunter2" not in out
        assert "@db/sekisho" in out


def test_usage_in_all_forms(sekisho: Run, home: Path) -> None:
    """What the store holds comes out as table, CSV and JSON; a name that a spreadsheet would run is defused."""
    import asyncio

    from sekisho.store import Store, UsageRecord

    key = answer(sekisho, "key", "create", "--name", "taro")

    async def record() -> None:
        store = await Store.open(home / "sekisho.db")
        rows = [
            UsageRecord(
                request_id=f"req_{number}", key_id=key["id"], model="m", protocol="chat", started_at=1_790_000_000.0,
                duration_ms=5.0, status="completed", http_status=200, user="=1+1", input_tokens=10,
                output_tokens=number, cost_micros=1_500_000,
            )
            for number in range(3)
        ]  # fmt: skip
        await store.append_usage(rows)
        await store.close()

    asyncio.run(record())
    (row,) = answer(sekisho, "usage", "--month", "2026-09", "--by", "key,model")["rows"]
    assert (row["key"], row["model"], row["requests"], row["input_tokens"], row["output_tokens"]) == (
        "taro",
        "m",
        3,
        30,
        3,
    )
    assert row["cost_micros"] == 4_500_000
    _, out, _ = sekisho("usage", "--month", "2026-09", "--by", "user", "--csv")
    (line,) = csv.DictReader(io.StringIO(out))
    assert (line["user"], line["requests"], line["cost_usd"]) == ("'=1+1", "3", "4.500000")
    _, out, _ = sekisho("usage", "--month", "2026-09", "--by", "day")
    assert "4.5000" in out
    assert answer(sekisho, "usage", "--month", "2026-08")["rows"] == []


def test_usage_counts_what_a_killed_server_left(sekisho: Run, home: Path) -> None:
    """Records that wait in the spool of a dead server are in the sums, once; the spool is empty afterwards."""
    from sekisho.store import UsageRecord, UsageSpool

    key = answer(sekisho, "key", "create", "--name", "taro")
    spool = UsageSpool(home / "spool")
    for number in range(3):
        spool.append(
            UsageRecord(
                request_id=f"req_{number}", key_id=key["id"], model="m", protocol="chat", started_at=1_790_000_000.0,
                duration_ms=5.0, status="completed", http_status=200, input_tokens=10, output_tokens=1,
            )
        )  # fmt: skip
    spool.close()
    for _ in range(2):
        (row,) = answer(sekisho, "usage", "--month", "2026-09")["rows"]
        assert (row["requests"], row["input_tokens"]) == (3, 30)
    assert list((home / "spool").iterdir()) == []


def test_model_add_keeps_comments_and_lists(sekisho: Run, home: Path, tmp_path: Path) -> None:
    """An address and the built-in can be added; a file that is no GGUF cannot; the file's comments stay."""
    home.mkdir()
    (home / "sekisho.yaml").write_text("# ours\nmodels:\n- name: sekisho-mini # small\n  path: builtin\n")
    answer(sekisho, "model", "add", "far", "--url", "http://127.0.0.1:1/v1", "--api-key-env", "FAR", "--slots", "2")
    (tmp_path / "text.gguf").write_text("hello")
    assert sekisho("model", "add", "bad", "--path", str(tmp_path / "text.gguf"))[0] == 1
    assert sekisho("model", "add", "far", "--url", "http://127.0.0.1:1/v1")[0] == 2
    text = (home / "sekisho.yaml").read_text()
    assert text.startswith("# ours\nmodels:\n- name: sekisho-mini # small\n")
    models = answer(sekisho, "model", "list", "--catalogue")
    assert [model["name"] for model in models["models"]] == ["sekisho-mini", "far"]
    assert models["models"][1]["slots"] == 2
    assert len(models["catalogue"]) >= 12


def test_recommend_tells_machine_and_models(sekisho: Run) -> None:
    """The answer holds what was measured and every model of the wanted kind, fitting or not."""
    found = answer(sekisho, "model", "recommend", "--slots", "1", "--context", "1024")
    assert found["hardware"]["ram_available_bytes"] > 0
    assert len(found["recommended"]) + len(found["rejected"]) >= 12
    assert sekisho("model", "recommend", "--all")[0] == 0


def test_pull_without_network(sekisho: Run, home: Path, monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int) -> None:
    """Nobody at the hub's address: exit code 4, and what to do instead."""
    from sekisho.ops import hub

    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{unused_tcp_port}")
    monkeypatch.setattr(hub.Patience, "pause_s", lambda self, failures: 0.0)
    error = answer(sekisho, "model", "pull", "qwen3-0.6b", code=4)["error"]
    assert f"sekisho model add qwen3-0.6b --path {home / 'models'}" in error["hint"]


def test_client_names_this_server(sekisho: Run, home: Path) -> None:
    """Address and models come from the settings; --url and --model win."""
    home.mkdir()
    (home / "sekisho.yaml").write_text("gateway: {port: 8123}\naliases: {fast: sekisho-mini}\n")
    made = answer(sekisho, "client", "codex")
    assert (made["url"], made["model"]) == ("http://127.0.0.1:8123", "sekisho-mini")
    made = answer(sekisho, "client", "curl", "--url", "https://llm.example.com/v1/", "--model", "fast")
    assert "https://llm.example.com/v1/chat/completions" in made["blocks"][1]["text"]
    assert made["model"] == "fast"


def test_doctor_finds_a_broken_database(sekisho: Run, home: Path, unused_tcp_port: int) -> None:
    """A database file that is none is an error with exit code 1."""
    home.mkdir(mode=0o700)
    (home / "sekisho.yaml").write_text(f"gateway: {{port: {unused_tcp_port}}}\nmodels: [{{name: m, engine: fake}}]\n")
    healthy = answer(sekisho, "doctor")
    assert healthy["errors"] == 0
    (home / "sekisho.db").write_bytes(b"not a database" * 100)
    sick = answer(sekisho, "doctor", code=1)
    assert [finding["id"] for finding in sick["findings"] if finding["severity"] == "error"] == ["database"]


def test_up_overrides_are_for_one_run(tmp_path: Path) -> None:
    """--model takes a name, an alias or a file, and leaves this one model with its aliases; --host and --port win."""
    from sekisho.cli.server import overridden
    from sekisho.settings import load_text

    settings = load_text(
        "models: [{name: a, path: builtin}, {name: b, path: builtin, slots: 2}]\n"
        "aliases: {fast: b, slow: a}\ndefault_model: a\n"
    )
    chosen = overridden(settings, "0.0.0.0", 80, "fast")
    assert [(model.name, model.slots) for model in chosen.models] == [("b", 2)]
    assert (chosen.aliases, chosen.default_model) == ({"fast": "b"}, None)
    assert (chosen.gateway.host, chosen.gateway.port) == ("0.0.0.0", 80)
    (tmp_path / "m.Q4.gguf").write_bytes(b"GGUF")
    (own,) = overridden(settings, None, None, str(tmp_path / "m.Q4.gguf")).models
    assert (own.name, own.path) == ("m.Q4", str(tmp_path / "m.Q4.gguf"))
    assert overridden(settings, None, None, None) == settings


def test_version(sekisho: Run) -> None:
    """The version is the package's own."""
    from sekisho import __version__

    assert answer(sekisho, "version")["version"] == __version__
    assert __version__ in sekisho("version")[1]


def test_an_empty_list_of_models_does_not_open_all_of_them(sekisho: Run) -> None:
    """A script's unset variable gives an error, not a key for everything."""
    assert answer(sekisho, "key", "create", "--name", "taro", "--models", " ,", code=2)["error"]["hint"]
    assert answer(sekisho, "key", "list") == []


@pytest.mark.parametrize("url", ["here", "ftp://host", "http://", "http://a b", "http://host:port"])
def test_a_client_is_given_no_address_that_is_none(sekisho: Run, url: str) -> None:
    """--url wants a web address."""
    assert repr(url) in answer(sekisho, "client", "codex", "--url", url, code=2)["error"]["message"]


def test_a_model_is_not_added_to_a_file_that_is_no_text(sekisho: Run, home: Path) -> None:
    """The file is named and stays as it is."""
    home.mkdir()
    file = home / "sekisho.yaml"
    file.write_bytes(b"\xff\xfe")
    error = answer(sekisho, "model", "add", "office", "--url", "http://127.0.0.1:1/v1", code=2)["error"]
    assert f"{file}: not UTF-8 text" in error["message"]
    assert file.read_bytes() == b"\xff\xfe"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_key_is_shown_whatever_the_encoding(home: Path, encoding: str) -> None:
    """What the terminal cannot write is spelled out: the only sight of a new secret is not lost to a name."""
    environment = {**os.environ, "PYTHONIOENCODING": encoding}

    def call(*arguments: str) -> str:
        argv = [sys.executable, "-m", "sekisho", *arguments]
        done = subprocess.run(argv, capture_output=True, env=environment, check=True)
        return done.stdout.decode(encoding)

    assert "sk-sekisho-" in call("key", "create", "--name", "太郎")
    assert "\\u592a\\u90ce" in call("key", "list")
    assert json.loads(call("key", "list", "--json"))[0]["name"] == "太郎"


def test_ids_are_whole_in_a_narrow_terminal(sekisho: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """No column that is there to be copied is cut short."""
    made = answer(sekisho, "key", "create", "--name", "taro")
    monkeypatch.setenv("COLUMNS", "40")
    assert made["id"] in sekisho("key", "list")[1]


@pytest.mark.parametrize("given", [True, False])
def test_the_banner_stops_the_server_that_it_tells_of(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], given: bool
) -> None:
    """The home stands in the line where a bare `sekisho down` would look into another one."""
    from sekisho.cli import banner
    from sekisho.cli.output import Output

    place = tmp_path / "an other" if given else home
    banner.show(Output(), {"url": "http://127.0.0.1:1", "models": ["m"], "home": str(place)}, detached=True)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith(f"down --home '{place}'" if given else "down")
