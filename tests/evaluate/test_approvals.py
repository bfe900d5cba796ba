"""Frozen thresholds: who may freeze them, what is found when they change, and what tampering comes to."""

import os
import threading
from pathlib import Path

import msgspec
import pytest
from test_thresholds import SMALL

from sekisho.audit.keys import SIGNING_FILE, load_key
from sekisho.core.errors import InvalidRequest, NotFound
from sekisho.evaluate.figures import Figure, Figures
from sekisho.evaluate.verdict import approvals as approvals_module
from sekisho.evaluate.verdict.approvals import FILE_NAME, Approval, Wish, approve, read, scorecard, state_of
from sekisho.evaluate.verdict.thresholds import load, path_of, write_template
from sekisho.ops.home import Home

WISH = Wish(
    profile="mine",
    measured_by="taro",
    approved_by="hanako",
    why="day 1 on the new machine",
    run_id="run_1",
    manifest_sha256="ab" * 32,
)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home").create()
    path_of(home).write_text(SMALL, encoding="utf-8")
    return home


def edit(home: Home, old: str, new: str) -> None:
    text = path_of(home).read_text(encoding="utf-8")
    assert old in text
    path_of(home).write_text(text.replace(old, new), encoding="utf-8")


def freeze(home: Home, wish: Wish = WISH, now: float = 1_790_000_000.0) -> Approval:
    return approve(home, load(home), wish, now)


def test_an_approval_freezes_values_with_names_and_reasons(home: Home) -> None:
    """The record holds who, when, why and on which run; from then on the thresholds are the approved ones."""
    assert state_of(read(home), load(home), "mine")[0].status == "none"
    record = freeze(home)
    state, approved = state_of(read(home), load(home), "mine")
    assert state.status == "approved"
    assert (state.number, state.approved_by, state.measured_by, state.run_id) == (1, "hanako", "taro", "run_1")
    assert (state.approved_at, state.why) == (1_790_000_000.0, "day 1 on the new machine")
    assert record.rules_sha256 == load(home).rules("mine").sha256
    assert [(c.id, c.value) for c in approved or ()] == [("cold", 30.0), ("quality", 0.8)]
    assert state_of(read(home), load(home), "a100")[0].status == "none", "each profile by itself"


@pytest.mark.parametrize("approver", ["taro", " Taro ", "ＴＡＲＯ", "taro\u00a0"])
def test_nobody_approves_their_own_measurement(home: Home, approver: str) -> None:
    """The same name in any writing is the same person, unless they say why they are alone; that is shown for good."""
    wish = msgspec.structs.replace(WISH, approved_by=approver)
    with pytest.raises(InvalidRequest, match="--alone"):
        freeze(home, wish)
    assert not read(home).records
    freeze(home, msgspec.structs.replace(wish, alone="only one of us knows the machine"))
    state, _ = state_of(read(home), load(home), "mine")
    assert state.alone == "only one of us knows the machine"


@pytest.mark.parametrize("field", ["measured_by", "approved_by", "why", "run_id", "manifest_sha256"])
def test_nothing_is_approved_without_names_reason_and_run(home: Home, field: str) -> None:
    """Each of them is asked for by its name."""
    for empty in ("", "  ", "a\nb"):
        with pytest.raises(InvalidRequest) as caught:
            freeze(home, msgspec.structs.replace(WISH, **{field: empty}))
        assert caught.value.param == field


def test_an_unknown_profile_cannot_be_approved(home: Home) -> None:
    """The file has no `other`, so it is an error and leaves no record."""
    with pytest.raises(NotFound):
        freeze(home, msgspec.structs.replace(WISH, profile="nobody"))
    assert not (home.path / FILE_NAME).exists()


def test_a_change_after_approval_is_found_and_shown(home: Home) -> None:
    """What from, what to, since when; the other profile is not affected, and by what was approved it is judged too."""
    freeze(home)
    edit(home, "quality: 80%", "quality: 60%")
    edit(home, "minimal_n: 20", "minimal_n: 5")
    edit(home, 'morning: "09:30"', 'morning: "11:00"')
    os.utime(path_of(home), (1_790_100_000, 1_790_100_000))
    state, _ = state_of(read(home), load(home), "mine")
    assert state.status == "changed"
    assert state.changed_at == 1_790_100_000
    assert [(c.criterion, c.what, c.before, c.after) for c in state.changes] == [
        ("quality", "value", "at_least 0.8", "at_least 0.6"),
        ("quality", "minimal_n", "20", "5"),
        ("calendar", "morning", "09:30", "11:00"),
    ]
    figures = Figures(
        (
            Figure(id="cold.ttfb_s", value=20.0, unit="s"),
            Figure(id="rubric.adoptable_rate", value=0.65, unit="share", n=20),
        )
    )
    card = scorecard(home, figures, "mine", "run_2")
    assert (card.verdict.decision, card.by_approved) == ("adopt", "limited_a")
    texts = " ".join(note[0] for note in card.notes)
    assert "changed after approval" in texts
    assert "3 changes" in texts
    assert "By the approved thresholds the verdict would be: Limited use: chat only" in texts
    assert any("承認後に基準が変更" in note[1] for note in card.notes)


def test_a_criterion_taken_out_or_put_in_is_a_change(home: Home) -> None:
    """Also the whole file gone: then the built-in ones count, and all differences are told."""
    freeze(home)
    start = SMALL.index("  quality:\n    figures")
    path_of(home).write_text(
        SMALL[:start].replace("    quality: 80%\n", "")
        + "  more:\n    figures: a.b\n    is: true\n    name: [More, もっと]\n",
        encoding="utf-8",
    )
    state, _ = state_of(read(home), load(home), "mine")
    assert [(c.criterion, c.what, c.before, c.after) for c in state.changes] == [
        ("quality", "criterion", "at_least 0.8", None),
        ("more", "criterion", None, "is true"),
    ]
    path_of(home).unlink()
    assert state_of(read(home), load(home), "mine")[0].status == "changed"


def test_wording_and_comments_may_change(home: Home) -> None:
    """They decide nothing."""
    freeze(home)
    edit(home, "[Cold start,", "[First answer of the day,")
    edit(home, "version: 1", "# ours\nversion: 1")
    assert state_of(read(home), load(home), "mine")[0].status == "approved"


def test_recalibration_keeps_the_history(home: Home) -> None:
    """A changed threshold may be approved again, on another run; the first approval stays readable."""
    freeze(home)
    with pytest.raises(InvalidRequest, match="approved already"):
        freeze(home)
    edit(home, "quality: 80%", "quality: 75%")
    freeze(home, msgspec.structs.replace(WISH, why="driver changed", run_id="run_2"), now=1_790_200_000.0)
    approvals = read(home)
    assert [(r.number, r.why, r.run_id) for r in approvals.records] == [
        (1, "day 1 on the new machine", "run_1"),
        (2, "driver changed", "run_2"),
    ]
    assert approvals.records[1].previous == approvals.hashes[0]
    assert state_of(approvals, load(home), "mine")[0].number == 2


def three(home: Home) -> list[bytes]:
    write_template(home, replace=True)
    for run, value in (("run_1", 15), ("run_2", 14), ("run_3", 13)):
        edit(home, "  a100:\n    cold_first_byte: ", f"  a100:\n    cold_first_byte: {value} # ")
        freeze(home, msgspec.structs.replace(WISH, profile="a100", run_id=run))
    return (home.path / FILE_NAME).read_bytes().splitlines()


@pytest.mark.parametrize("how", ["value", "name", "drop", "swap", "double", "cut", "resign", "garbage", "number"])
def test_tampered_records_count_as_none(home: Home, how: str) -> None:
    """A changed value or name, a record dropped, swapped, doubled, cut or signed by somebody else: the state is broken,
    the scorecard says so, and nothing more can be approved on top of it."""
    lines = three(home)
    if how == "value":
        lines[1] = lines[1].replace(b'"value":14.0', b'"value":44.0')
    elif how == "name":
        lines[0] = lines[0].replace(b"hanako", b"saburo")
    elif how == "drop":
        del lines[1]
    elif how == "swap":
        lines[0], lines[1] = lines[1], lines[0]
    elif how == "double":
        lines.insert(1, lines[0])
    elif how == "cut":
        lines[2] = lines[2][:-30]
    elif how == "garbage":
        lines.append(b"{}")
    elif how == "number":
        lines[2] = lines[2].replace(b'"number":3', b'"number":4')
    else:
        (home.secrets / SIGNING_FILE).unlink()
        load_key(home.secrets / SIGNING_FILE)
    body = b"\n".join(lines) + b"\n"
    assert how == "resign" or body != (home.path / FILE_NAME).read_bytes()
    (home.path / FILE_NAME).write_bytes(body)
    approvals = read(home)
    assert approvals.problem
    card = scorecard(home, Figures(), "a100")
    assert card.approval.status == "broken"
    assert any("cannot be trusted" in note[0] for note in card.notes)
    with pytest.raises(InvalidRequest, match="cannot be trusted"):
        freeze(home, msgspec.structs.replace(WISH, profile="a100", run_id="run_9"))


def test_cutting_the_newest_off_does_not_loosen_anything(home: Home) -> None:
    """What is left is an older approval, which the file then disagrees with: a change that nobody approved."""
    lines = three(home)
    (home.path / FILE_NAME).write_bytes(b"\n".join(lines[:1]) + b"\n")
    state, _ = state_of(read(home), load(home), "a100")
    assert (state.status, state.number) == ("changed", 1)
    assert [(c.criterion, c.before, c.after) for c in state.changes] == [
        ("cold_first_byte", "at_most 15", "at_most 13")
    ]


def test_another_machine_can_check_the_records(home: Home, tmp_path: Path) -> None:
    """Without the home's key the chain is checked against the key that the records name."""
    three(home)
    copy = Home(tmp_path / "copy").create()
    (copy.path / FILE_NAME).write_bytes((home.path / FILE_NAME).read_bytes())
    assert len(read(copy).records) == 3
    assert not read(copy).problem
    body = (copy.path / FILE_NAME).read_bytes().replace(b"hanako", b"saburo")
    (copy.path / FILE_NAME).write_bytes(body)
    assert read(copy).problem


def test_two_at_once_make_one_chain(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Approvals of several people at the same time stand one after another."""
    monkeypatch.setattr(approvals_module, "LOCK_S", 60.0)
    wishes = [msgspec.structs.replace(WISH, run_id=f"run_{number}") for number in range(8)]
    threads = [threading.Thread(target=freeze, args=(home, wish)) for wish in wishes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    approvals = read(home)
    assert not approvals.problem
    assert sorted(record.run_id for record in approvals.records) == [wish.run_id for wish in wishes]
