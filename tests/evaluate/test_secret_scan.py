"""Keys in plain text are found wherever they lie, and shown by their last four characters alone."""

import gzip
import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sekisho.evaluate.verdict import secret_scan
from sekisho.evaluate.verdict.secret_scan import MARKS, MOST_LISTED, Leak, scan, scan_home
from sekisho.guard.personal import credentials
from sekisho.ops.config import LogsConfig
from sekisho.ops.home import Home
from sekisho.ops.log_file import RotatingLog
from sekisho.store import KeySpec, Store

OTHERS = "sk-sekisho-" + "Zz9_" * 10 + "Abc"
VENDOR = "sk-proj-" + "a1B2" * 10
PEM = "-----BEGIN PRIVATE KEY-----\n" + "MIIEvQIBADANBgkqhkiG9w0BAQEFAASC\n" * 3 + "-----END PRIVATE KEY-----\n"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home").create()


def places(leaks: tuple[Leak, ...]) -> list[tuple[str, int, str, str]]:
    return [(leak.path, leak.line, leak.kind, leak.certainty) for leak in leaks]


async def test_a_live_key_is_definite_and_named(home: Home) -> None:
    """Its hash is in the store: which key it is is told, and after its revocation it is only suspicious."""
    store = await Store.open(home.database)
    record, secret = await store.create_key(KeySpec(name="taro"))
    (home.logs / "gateway.log").write_text(f"one\ntwo {secret} three\n")
    found = scan_home(home, await store.load_keys())
    leak = found.leaks[0]
    assert places(found.leaks) == [("logs/gateway.log", 2, "sekisho_key", "definite")]
    assert (leak.key_id, leak.key_name) == (record.id, "taro")
    assert leak.shown == f"sk-…{secret[-4:]}"
    assert secret[:-4][-8:] not in str(found)
    assert (found.definite, found.suspicious, found.unreadable) == (1, 0, ())
    await store.revoke_key("taro")
    assert scan_home(home, await store.load_keys()).leaks[0].certainty == "suspicious"
    await store.close()


async def test_the_book_is_no_plain_text(home: Home) -> None:
    """Ciphertext that by chance looks like a token is none; a key of ours that stands in the book all the same is."""
    store = await Store.open(home.database)
    _, secret = await store.create_key(KeySpec(name="taro"))
    chance = "MKmfaTBjvZsD9PNOHppgAX+eyJ0RRlLwIAdlWaBtkU8grBai5+hLhW3QOktOmo7IQWj"
    (home.audit / "00000000.jsonl").write_text(f'{{"n":1,"c":"{chance}"}}\n{{"n":2,"c":"{secret}"}}\n')
    (home.logs / "gateway.log").write_text(f"{chance}\n")
    found = scan_home(home, await store.load_keys())
    assert places(found.leaks) == [
        ("audit/00000000.jsonl", 2, "sekisho_key", "definite"),
        ("logs/gateway.log", 1, "TOKEN", "suspicious"),
    ]
    await store.close()


async def test_an_example_in_an_answer_is_no_leak(home: Home) -> None:
    """What a model made up is not counted in the files of runs, wherever they lie there; a live key of ours is, and
    the same text in a log is."""
    store = await Store.open(home.database)
    _, secret = await store.create_key(KeySpec(name="taro"))
    textbook = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
    answer = f'OpenAI(api_key="sk-your-api-key-here-1234567890abcdef")\nAuthorization: Bearer {textbook}\n'
    folder = home.runs / "run-1"
    (folder / "rubric").mkdir(parents=True)
    for name in ("rubric/answers.json", "codex.json", "continuity_chat.csv", "sessions_chat.json"):
        (folder / name).write_text(answer)
    assert scan_home(home, await store.load_keys(), [folder]).count == 0
    (folder / "codex.json").write_text(f"{answer}{secret}\n")
    (home.logs / "gateway.log").write_text(answer)
    assert places(scan_home(home, await store.load_keys(), [folder]).leaks) == [
        ("logs/gateway.log", 1, "API_KEY", "suspicious"),
        ("logs/gateway.log", 2, "TOKEN", "suspicious"),
        ("runs/run-1/codex.json", 3, "sekisho_key", "definite"),
    ]
    await store.close()


def test_old_logs_are_looked_into(home: Home) -> None:
    """Compressed ones too, by their content and not by their name; lines are counted in what was compressed."""
    (home.logs / "gateway.log.2").write_text(f"{OTHERS}\n")
    for name in ("gateway.log.1.gz", "moved-away"):
        with gzip.open(home.logs / name, "wt") as file:
            file.write("line\n" * 70_000 + f"key={VENDOR}\n")
    found = scan_home(home, {})
    assert places(found.leaks) == [
        ("logs/gateway.log.1.gz", 70_001, "API_KEY", "suspicious"),
        ("logs/gateway.log.2", 1, "sekisho_key", "suspicious"),
        ("logs/moved-away", 70_001, "API_KEY", "suspicious"),
    ]


def test_what_cannot_be_read_is_told(home: Home) -> None:
    """A cut archive is read as far as it goes, and named: its rest may hold anything."""
    whole = gzip.compress(random.Random(1).randbytes(200_000) + b"\n")
    (home.logs / "a.log.1.gz").write_bytes(gzip.compress(f"{OTHERS}\n".encode())[:-8])
    (home.logs / "b.log.1.gz").write_bytes(whole[: len(whole) // 2])
    (home.logs / "c.log.1.gz").write_bytes(b"\x1f\x8bthis is none")
    found = scan_home(home, {})
    assert [line.split(":")[0] for line in found.unreadable] == [
        "logs/a.log.1.gz",
        "logs/b.log.1.gz",
        "logs/c.log.1.gz",
    ]


@pytest.mark.parametrize(
    ("text", "kind", "line"),
    [
        (f"ok\nAuthorization: Bearer {'q7' * 15}\n", "TOKEN", 2),
        (f"x {VENDOR} y", "API_KEY", 1),
        ("a\nb\n" + PEM, "PRIVATE_KEY", 3),
        ("ghp_" + "a1B2c3D4" * 5, "API_KEY", 1),
        ("hf_" + "a1B2c3D4" * 5, "API_KEY", 1),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJlLi4u", "TOKEN", 1),
        (f'{{"key": "{OTHERS}"}}', "sekisho_key", 1),
        ("cut off: sk-sekisho-AbCdEfGh", "sekisho_key", 1),
    ],
)
def test_keys_of_vendors_tokens_and_private_keys(tmp_path: Path, text: str, kind: str, line: int) -> None:
    """Each once, at its line; only the last four characters are shown, of a private key none."""
    (tmp_path / "f").write_text(text)
    found = scan([tmp_path], {}, tmp_path)
    assert places(found.leaks) == [("f", line, kind, "suspicious")]
    shown = found.leaks[0].shown
    assert len(shown.removeprefix("sk-").removeprefix("…")) == (0 if kind == "PRIVATE_KEY" else 4)


@pytest.mark.parametrize(
    "secret",
    [
        "sk-sekisho-7_v6ECoFIaS7pC4qPsza_hf_1RQkakZlnW6w-3ghMLA",
        "sk-sekisho-65-ceyJxH6rlfQrq8gSKBHQ1LboRRrNWObrSZKwVSFc",
    ],
)
def test_a_key_of_ours_that_looks_like_a_vendors_is_one_key(tmp_path: Path, secret: str) -> None:
    """Its random characters may hold the beginning of a vendor's key: it is told once, what stands beside it too."""
    (tmp_path / "f").write_text(f"two {secret} three\n{VENDOR} {secret} {VENDOR}\n")
    found = scan([tmp_path], {}, tmp_path)
    assert [(leak.line, leak.kind) for leak in found.leaks] == [
        (1, "sekisho_key"),
        (2, "API_KEY"),
        (2, "sekisho_key"),
        (2, "API_KEY"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "a masked key sk-…abcd and an id key_0123456789abcdef0123456789",
        '{"input_tokens":12,"request_id":"req_0123456789abcdef01234567","error_id":"err_0123456789abcdef01234567"}',
        "sk-sekisho- is how a key begins",
        "Bearer token missing; use Authorization: Bearer <key>",
        "password: hunter2, token: next",
        "日本語のログ・キーはありません",
        "",
    ],
)
def test_what_only_speaks_of_keys_is_none(tmp_path: Path, text: str) -> None:
    """Masked keys, ids, names of headers and fields."""
    (tmp_path / "f").write_text(text, encoding="utf-8")
    assert scan([tmp_path], {}, tmp_path).leaks == ()


def test_our_own_logs_hold_none(home: Home) -> None:
    """What a child says goes through the log's redaction: keys that it prints are gone when the scanner comes."""
    log = RotatingLog(home.logs / "engine.log", LogsConfig(max_bytes=2_000))
    for _ in range(50):
        log.write(f"start with {OTHERS} and {VENDOR}, Authorization: Bearer {'q7' * 15}\n{PEM}".encode())
    log.close()
    assert sum(path.stat().st_size for path in home.logs.iterdir()) > 1_000
    assert scan_home(home, {}).count == 0


def test_databases_are_looked_into_and_secrets_left_alone(home: Home) -> None:
    """A key in a file that is no text has line 0; models and the folder of secrets are not read."""
    home.database.write_bytes(b"SQLite format 3\0" + random.Random(2).randbytes(5000) + b" " + OTHERS.encode() + b"\0")
    (home.secrets / "provider.key").write_text(VENDOR)
    (home.models / "m.gguf").write_bytes(b"GGUF" + OTHERS.encode())
    assert places(scan_home(home, {}).leaks) == [("sekisho.db", 0, "sekisho_key", "suspicious")]


def test_more_places_can_be_named(home: Home, tmp_path: Path) -> None:
    """Files and folders elsewhere, by their whole path; pipes and dead links are passed over."""
    extra = tmp_path / "extra"
    (extra / "deep").mkdir(parents=True)
    (extra / "deep" / "a.txt").write_text(OTHERS)
    (tmp_path / "one.txt").write_text(VENDOR)
    if hasattr(os, "mkfifo"):
        os.mkfifo(extra / "pipe")
    (extra / "dead").symlink_to(tmp_path / "nowhere")
    found = scan_home(home, {}, [extra, tmp_path / "one.txt", tmp_path / "one.txt", tmp_path / "missing"])
    assert [leak.path for leak in found.leaks] == [str(extra / "deep" / "a.txt"), str(tmp_path / "one.txt")]


def test_a_file_is_read_once(tmp_path: Path) -> None:
    """A hard link, or a file named twice, is the same file."""
    (tmp_path / "a").write_text(OTHERS)
    os.link(tmp_path / "a", tmp_path / "b")
    assert scan([tmp_path, tmp_path / "a"], {}).files == 1


@settings(max_examples=60, deadline=None)
@given(
    before=st.integers(0, 700),
    between=st.integers(0, 700),
    lines=st.booleans(),
    block=st.sampled_from([64, 100, 256, 300]),
)
def test_no_cut_between_blocks_hides_or_doubles_a_key(
    tmp_path_factory: pytest.TempPathFactory, before: int, between: int, lines: bool, block: int
) -> None:
    """Wherever two keys lie in a long line or in many, each is told once."""
    folder = tmp_path_factory.mktemp("scan")
    fill = "ab, " if not lines else "ab,\n"
    text = fill * before + OTHERS + " " + fill * between + VENDOR + " "
    (folder / "f").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(secret_scan, "_BLOCK_BYTES", block)
        patch.setattr(secret_scan, "_LONGEST_LINE_BYTES", 16)
        patch.setattr(secret_scan, "_OVERLAP_BYTES", 160)
        patch.setattr(secret_scan, "_HELD_BYTES", 120)
        found = scan([folder], {}, folder)
    expected = [text[: text.index(key)].count("\n") + 1 for key in (OTHERS, VENDOR)]
    assert [(leak.kind, leak.line) for leak in found.leaks] == [
        ("sekisho_key", expected[0]),
        ("API_KEY", expected[1]),
    ]
    assert found.bytes == len(text)


def test_many_finds_are_counted_and_not_all_listed(tmp_path: Path) -> None:
    """Memory stays bounded."""
    (tmp_path / "f").write_text(f"{OTHERS}\n" * (MOST_LISTED + 500))
    found = scan([tmp_path], {}, tmp_path)
    assert (len(found.leaks), found.suspicious) == (MOST_LISTED, MOST_LISTED + 500)


def test_the_marks_cover_every_known_form() -> None:
    """A key whose beginning the guard knows has one of the marks in it: else it would be looked for in vain."""
    for prefix, _ in credentials._KEYS:
        assert any(mark in prefix for mark in MARKS), prefix


def test_it_tells_how_far_it_is(tmp_path: Path) -> None:
    """One step a file, up to all of them."""
    for name in "abc":
        (tmp_path / name).write_text("x")
    steps: list[tuple[str, int, int]] = []
    scan([tmp_path], {}, progress=lambda *step: steps.append(step))
    assert ("scan", 2, 3) in steps
    assert ("scan", 3, 3) in steps
