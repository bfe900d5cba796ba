"""Seals and manifests, and attacks on them."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sekisho.audit.keys import sign
from sekisho.core.errors import InvalidRequest
from sekisho.evaluate.report.signing import (
    MARKER,
    check,
    check_manifest,
    data_digest,
    public_key,
    seal,
    shown_digest,
    write_manifest,
)

KEY, OTHER = b"k" * 32, b"o" * 32
PAGE = '<!doctype html>\n<html lang="ja"><body>合格 pass</body></html>\n'
SEALED = seal(PAGE, KEY).encode()


def body_and_line() -> tuple[bytes, bytes]:
    body, line, _ = SEALED.rsplit(b"\n", 2)
    return body + b"\n", line + b"\n"


def test_a_sealed_page_is_good_and_names_its_signer() -> None:
    """The page itself is unchanged but for one line at its end, and anyone finds out who signed it."""
    assert SEALED.startswith(PAGE.encode())
    assert SEALED.count(b"\n") == PAGE.count("\n") + 1
    checked = check(SEALED)
    assert checked.ok
    assert checked.signer == public_key(KEY).hex()
    assert check(SEALED, public_key(KEY)).ok


def test_another_signer_than_the_expected_is_refused() -> None:
    """A forger's own signature is good in itself, and is told from the team's by its key alone."""
    forged = seal(PAGE.replace("pass", "fail"), OTHER).encode()
    assert check(forged).ok
    checked = check(forged, public_key(KEY))
    assert not checked.ok
    assert checked.signer == public_key(OTHER).hex()
    assert "another key" in checked.why[0]


@given(st.data())
def test_no_byte_can_be_changed_taken_or_added(data: st.DataObject) -> None:
    """Any one byte replaced, removed or inserted anywhere breaks it."""
    at = data.draw(st.integers(0, len(SEALED) - 1))
    new = data.draw(st.integers(0, 255).filter(lambda byte: byte != SEALED[at]))
    for changed in (
        SEALED[:at] + bytes([new]) + SEALED[at + 1 :],
        SEALED[:at] + SEALED[at + 1 :],
        SEALED[:at] + bytes([new]) + SEALED[at:],
        SEALED + bytes([new]),
    ):
        assert not check(changed).ok


def upper(html: bytes) -> bytes:
    body, line = body_and_line()
    head, signer, rest = line.partition(public_key(KEY).hex().encode())
    return body + head + signer.upper() + rest


def other_signer(html: bytes) -> bytes:
    return html.replace(public_key(KEY).hex().encode(), public_key(OTHER).hex().encode())


ATTACKS = {
    "nothing at all": lambda html: b"",
    "not signed": lambda html: PAGE.encode(),
    "appended markup": lambda html: html + b"<script>alert(1)</script>\n",
    "appended newline": lambda html: html + b"\n",
    "appended space before the newline": lambda html: html.replace(b" -->\n", b" --> \n"),
    "a second seal by another": lambda html: seal_again(html, OTHER),
    "a second seal by the same": lambda html: seal_again(html, KEY),
    "the seal twice": lambda html: html + body_and_line()[1],
    "the seal first": lambda html: body_and_line()[1] + body_and_line()[0],
    "the seal inside the page": lambda html: html.replace(b"<body>", b"<body>" + body_and_line()[1]),
    "the seal of this page on another": lambda html: PAGE.replace("合格", "不合格").encode() + body_and_line()[1],
    "the seal moved into the page": lambda html: PAGE.encode().replace(
        b"<body>", b"<body>" + body_and_line()[1].strip()
    ),
    "an edited page": lambda html: html.replace(b"pass", b"fail"),
    "an edited signer": other_signer,
    "upper-case hex": upper,
    "short hex": lambda html: html.replace(public_key(KEY).hex().encode(), public_key(KEY).hex().encode()[:-2]),
    "spaces in the hex": lambda html: html.replace(b"signature 1 ", b"signature 1  "),
    "another version": lambda html: html.replace(b"signature 1 ", b"signature 2 "),
    "another kind of line ends": lambda html: html.replace(b"\n", b"\r\n"),
    "a byte order mark": lambda html: b"\xef\xbb\xbf" + html,
    "another encoding": lambda html: html.decode().encode("utf-16"),
    "the last newline lost": lambda html: html.rstrip(b"\n"),
    "the page cut before its end": lambda html: html.replace(b"</html>\n", b""),
    "a signature of zeros": lambda html: body_and_line()[0] + body_and_line()[1][:-133] + b"0" * 128 + b" -->\n",
}


def seal_again(html: bytes, key: bytes) -> bytes:
    """A second, good signature over the sealed page: what a forger makes who does not use `seal`."""
    body, public = html + b"</html>\n", public_key(key)
    told = f"sekisho report 1\n{public.hex()}\n{hashlib.sha256(body).hexdigest()}\n"
    line = f"<!-- sekisho-report-signature 1 {public.hex()} {sign(key, told.encode()).hex()} -->\n"
    return body + line.encode()


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_attacks(attack: "object") -> None:
    """Each known way to change a page and keep its seal is refused, with a reason in both languages."""
    changed = attack(SEALED)  # type: ignore[operator]
    assert changed != SEALED
    checked = check(changed, public_key(KEY))
    assert not checked.ok
    assert all(checked.why)
    assert not check(changed).ok


def test_changed_line_ends_are_called_that() -> None:
    """The commonest harmless damage, CRLF, is told from tampering; it is refused all the same."""
    assert "CRLF" in check(SEALED.replace(b"\n", b"\r\n")).why[0]
    tampered = SEALED.replace(b"pass", b"fail").replace(b"\n", b"\r\n")
    assert "CRLF" not in check(tampered).why[0]


@pytest.mark.parametrize(
    "page", [SEALED.decode(), "<html></html>", PAGE.replace("\n", "\r\n"), f"<!-- {MARKER.decode()} {PAGE}"]
)
def test_a_page_that_could_be_mistaken_is_not_sealed(page: str) -> None:
    """What is sealed already, or begins a seal, or does not end as a page does, gets none."""
    with pytest.raises(ValueError, match="sealed"):
        seal(page, KEY)


def test_an_answer_that_speaks_of_the_signature_is_no_seal() -> None:
    """A server's words stand escaped on the page, whatever they are: a report of them is sealed and checked."""
    page = PAGE.replace("</body>", "&lt;!-- sekisho-report-signature 1 sekisho-report-signature</body>")
    assert check(seal(page, KEY).encode()).ok


# --- folders --------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run = tmp_path / "run_1"
    (run / "rubric").mkdir(parents=True)
    (run / "bench.csv").write_bytes(b"a,b\n1,2\n")
    (run / "rubric" / "評価.json").write_bytes(b"{}")
    (run / ".lock").write_bytes(b"1")
    digest = data_digest(run)
    page = f'<!doctype html>\n<html><head><meta name="sekisho-data-sha256" content="{digest}"></head></html>\n'
    (run / "report.html").write_bytes(seal(page, KEY).encode())
    write_manifest(run, "run_1", KEY)
    return run


def test_an_untouched_folder_is_good(folder: Path) -> None:
    """Manifest, files and report agree; the journal's own files may change."""
    (folder / ".lock").write_bytes(b"2")
    checked = check_manifest(folder, public_key(KEY))
    assert checked.ok, checked.why
    assert checked.report is not None
    assert checked.report.ok
    assert checked.signer == public_key(KEY).hex()


def test_each_change_is_named(folder: Path) -> None:
    """Changed, missing and added files are told apart, each by its path."""
    (folder / "bench.csv").write_bytes(b"a,b\n1,3\n")
    (folder / "rubric" / "評価.json").unlink()
    (folder / "rubric" / "new.json").write_bytes(b"{}")
    checked = check_manifest(folder, public_key(KEY))
    assert not checked.ok
    assert (checked.changed, checked.missing, checked.added) == (
        ("bench.csv",),
        ("rubric/評価.json",),
        ("rubric/new.json",),
    )
    assert "bench.csv" in checked.why[0]
    assert "rubric/評価.json" in checked.why[1]


def test_a_manifest_made_anew_by_another_is_refused(folder: Path) -> None:
    """Whoever edits a file and signs a fresh manifest cannot do it with the team's key."""
    (folder / "bench.csv").write_bytes(b"a,b\n9,9\n")
    write_manifest(folder, "run_1", OTHER)
    assert not check_manifest(folder, public_key(KEY)).ok
    assert not check_manifest(folder).ok  # the report is still signed by the first key


def test_report_and_manifest_have_one_signer(folder: Path) -> None:
    """Even with nothing changed, a manifest by another key than the report's is not the run's own."""
    write_manifest(folder, "run_1", OTHER)
    checked = check_manifest(folder)
    assert not checked.ok
    assert "different keys" in checked.why[0]


def test_a_report_of_other_data_is_refused(folder: Path) -> None:
    """A good report of one run does not pass in another's folder, even where that folder is signed anew."""
    (folder / "bench.csv").write_bytes(b"a,b\n9,9\n")
    write_manifest(folder, "run_1", KEY)
    checked = check_manifest(folder, public_key(KEY))
    assert not checked.ok
    assert checked.changed == ()
    assert "other data" in checked.why[0]


@pytest.mark.parametrize(
    "edit",
    [
        lambda raw: raw.replace(b"bench.csv", b"bench.tsv"),
        lambda raw: raw.replace(b'"run_1"', b'"run_2"'),
        lambda raw: raw + b"\n",
        lambda raw: raw.replace(b"\n", b"\r\n"),
        lambda raw: raw.replace(public_key(KEY).hex().encode(), public_key(OTHER).hex().encode()),
        lambda raw: raw.replace(public_key(KEY).hex().encode(), public_key(KEY).hex().upper().encode()),
        lambda raw: raw.replace(b'"manifest": 1', b'"manifest": 1, "note": "x"'),
        lambda raw: raw.replace(b'"manifest": 1', b'"manifest": 1, "manifest": 1'),
        lambda raw: b"{}",
        lambda raw: b"\xff\xfe",
        lambda raw: b"",
    ],
)
def test_an_edited_manifest_is_refused(folder: Path, edit: "object") -> None:
    """The manifest has one form alone: any other text of the same meaning is refused, too."""
    path = folder / "manifest.json"
    raw = path.read_bytes()
    changed = edit(raw)  # type: ignore[operator]
    assert changed != raw
    path.write_bytes(changed)
    checked = check_manifest(folder, public_key(KEY))
    assert not checked.ok
    assert "manifest.json" in checked.why[0]


def test_a_folder_without_a_manifest_is_refused(folder: Path) -> None:
    """Nothing signed is not the same as nothing wrong."""
    (folder / "manifest.json").unlink()
    assert not check_manifest(folder).ok


@pytest.mark.skipif(sys.platform == "win32", reason="making links needs rights on Windows")
def test_links_and_pipes_are_not_evidence(folder: Path) -> None:
    """What a link leads to may change unseen, and a pipe never ends: neither is followed, opened or signed."""
    for make in (lambda path: path.symlink_to("/etc/hostname"), os.mkfifo, lambda path: path.symlink_to(folder)):
        odd = folder / "odd"
        make(odd)
        with pytest.raises(InvalidRequest, match="odd"):
            write_manifest(folder, "run_1", KEY)
        checked = check_manifest(folder, public_key(KEY))
        assert not checked.ok
        assert checked.added == ("odd",)
        odd.unlink()


@pytest.mark.skipif(sys.platform == "win32", reason="such names cannot be made on Windows")
def test_names_that_no_line_can_hold_are_refused(folder: Path) -> None:
    """A line break or an override of direction in a name could lie about another file's line."""
    for name in ("a\nb", "a\\b", "a\u202eb", os.fsdecode(b"a\xffb")):
        (folder / name).write_bytes(b"")
        with pytest.raises(InvalidRequest):
            data_digest(folder)
        added = check_manifest(folder, public_key(KEY)).added
        assert len(added) == 1
        assert added[0].isprintable()
        (folder / name).unlink()


def test_a_manifest_never_leads_out_of_its_folder(folder: Path) -> None:
    """A path that a forged manifest names is never opened; it is only missing."""
    import msgspec

    from sekisho.evaluate.report import signing

    made = signing.manifest(folder, "run_1", OTHER)
    outside = signing.FileRow("../../../../etc/hostname", 1, "0" * 64)
    forged = msgspec.structs.replace(made, files=(outside, *made.files), signature="")
    signature = signing.sign(OTHER, signing._manifest_body(forged))
    forged = msgspec.structs.replace(forged, signature=signature.hex())
    (folder / "manifest.json").write_bytes(signing._manifest_text(forged))
    assert check_manifest(folder).missing == ("../../../../etc/hostname",)


@pytest.mark.skipif(sys.platform != "linux", reason="the recipe is for GNU find and sha256sum")
def test_the_digest_can_be_made_without_us(folder: Path) -> None:
    """The recipe of the report, typed into a shell in the run's folder, gives the digest that the report shows."""
    recipe = (
        "find . -type f ! -path ./manifest.json ! -path './.*' ! -path './report.*' -printf '%P\\0' "
        "| LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum"
    )
    template = Path(sys.modules["sekisho.evaluate.report.signing"].__file__ or "").with_name("template.html.j2")
    assert recipe in template.read_text("utf-8")
    told = subprocess.run(["bash", "-c", recipe], cwd=folder, capture_output=True, text=True, check=True)
    assert told.stdout.split()[0] == data_digest(folder) == shown_digest((folder / "report.html").read_bytes())
