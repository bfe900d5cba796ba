"""Finding and replacing personal data and secrets. Every secret in here says FAKE or is a published test number."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sekisho.guard.personal import Pseudonyms, find, redact
from sekisho.guard.personal.check_digits import issued, luhn

CARDS = ("4111111111111111", "5555555555554444", "378282246310005", "3530111333300000", "6011111111111117")
SAMPLES = (
    "nobody@example.com",
    "090-0000-1234",
    "4111 1111 1111 1111",
    "sk-sekisho-FAKEFAKEFAKE",
    "password=FAKEfake00",
    "山田太郎様",
    "東京都千代田区丸の内1-2-3",
    "〒100-0001",
    "マイナンバー 123456789018",
    "生年月日 1990年1月2日",
    "Dr. John Smith",
    "postgresql://app:FAKE@db.example.com/app",
    "口座番号 1234567",
    "Bearer FAKEfake0000FAKEfake0000",
    "-----BEGIN PRIVATE KEY-----\nFAKEFAKEFAKEFAKE\n-----END PRIVATE KEY-----",
    "[EMAIL_1]",
    "[x]",
    "\\u0040",
    "%40",
)
pieces = st.lists(
    st.one_of(st.sampled_from(SAMPLES), st.text(max_size=12), st.text("0123456789-@. 様さん:=は", max_size=12)),
    max_size=8,
)
texts = pieces.map(lambda parts: "".join(parts).replace("\0", ""))


def kinds(text: str) -> list[str]:
    return [found.kind for found in find(text)]


@given(texts)
def test_redacting_twice_changes_nothing_more(text: str) -> None:
    """What was redacted holds nothing that would be found again."""
    once = redact(text).text
    assert redact(once).text == once


@given(texts)
def test_finds_are_in_order_and_inside_the_text(text: str) -> None:
    """Finds do not overlap, are not empty, and cut the text into what stays and what goes."""
    redacted = redact(text)
    place, rest = 0, ""
    for found in redacted.found:
        assert place <= found.start < found.end <= len(text)
        rest += text[place : found.start] + "\0"
        place = found.end
    rest += text[place:]
    shape = re.escape(rest).replace(re.escape("\0"), r"\[[A-Z_]+_\d+\]")
    assert re.fullmatch(shape, redacted.text, re.DOTALL)


@given(texts)
def test_the_vault_can_restore_the_text(text: str) -> None:
    """With the pseudonyms of the record each placeholder of ours leads back to a value, in its first writing."""
    pseudonyms = Pseudonyms()
    redacted = redact(text, pseudonyms)
    for found in redacted.found:
        value = text[found.start : found.end]
        name = pseudonyms.placeholder(found.kind, value)
        assert name in redacted.text
        assert name in pseudonyms.originals


@given(
    st.sampled_from(CARDS),
    st.lists(st.integers(1, 6), min_size=1, max_size=6),
    st.sampled_from(["", " ", "-", " - ", "ー", "－", "\u200b", "\u3000", "_"]),
    st.sampled_from(["", "card", "番号は", "(", "\n", "、", "x: "]),
    st.sampled_from(["", "です", ")", ".", "\n", " ok"]),
    st.booleans(),
)
def test_no_card_survives(card: str, sizes: list[int], joint: str, before: str, after: str, wide: bool) -> None:
    """A card number is found however it is grouped, in full-width digits too, and beside Japanese without a space."""
    groups, rest = [], card
    for size in sizes:
        groups.append(rest[:size])
        rest = rest[size:]
    number = joint.join(group for group in [*groups, rest] if group)
    if wide:
        number = number.translate({ord(c): chr(ord(c) + 0xFEE0) for c in "0123456789"})
    shown = redact(f"{before}{number}{after}").text
    assert "[CARD_1]" in shown
    assert not any(character.isdigit() for character in shown.replace("[CARD_1]", ""))


@given(st.integers(0, 10**15 - 1))
def test_a_number_of_an_issuer_with_its_check_digit_is_a_card(body: int) -> None:
    """Any 16 digits that an issuer could have given out are found; with a wrong check digit they are no card."""
    digits = f"4{body:015d}"[:15]
    for last in "0123456789":
        number = digits + last
        assert luhn(number) == ("CARD" in kinds(f"pay {number} now"))
        assert issued(number)


@given(st.text(max_size=40), st.sampled_from(SAMPLES[:15]))
def test_placeholders_never_hold_the_value(text: str, sample: str) -> None:
    """A placeholder is made of kind and number alone."""
    pseudonyms = Pseudonyms()
    redact(f"{text} {sample} {text}", pseudonyms)
    assert all(re.fullmatch(r"\[[A-Z]+(_[A-Z]+)*_[0-9]+\]", name) for name in pseudonyms.originals)


def test_the_same_value_gets_the_same_number() -> None:
    """Within one record, whatever the writing; another value gets the next number."""
    pseudonyms = Pseudonyms()
    assert redact("090-0000-1234 と 080-0000-1234", pseudonyms).text == "[PHONE_1] と [PHONE_2]"
    assert (
        redact("０９０００００１２３４ A@EXAMPLE.COM a@example.com", pseudonyms).text == "[PHONE_1] [EMAIL_1] [EMAIL_1]"
    )
    assert pseudonyms.originals["[PHONE_1]"] == "090-0000-1234"


def test_a_placeholder_that_was_there_already_is_not_given_again() -> None:
    """A text that holds `[EMAIL_1]` itself gets other numbers, so that the vault never mixes them up."""
    assert redact("[EMAIL_1] a@example.com").text == "[EMAIL_1] [EMAIL_2]"


def test_a_placeholder_is_no_context() -> None:
    """The word in `[CARD_1]` calls no number beside it a card, or a second redaction would find more."""
    text = "4111 1111 1111 1111: 5018 0000 0009"
    assert redact(text).text == "[CARD_1]: 5018 0000 0009"
    assert redact("[CARD_1]: 5018 0000 0009").found == ()
    assert redact("[MY_NUMBER_1]: 123456789018").found == ()


def test_the_longest_find_wins() -> None:
    """Twelve digits of a card that would pass as a My Number are part of the card."""
    assert redact("個人番号 4111 1111 1111 1111").text == "個人番号 [CARD_1]"
    assert redact("マイナンバー 4111 1111 1111").text == "マイナンバー [MY_NUMBER_1]"


@pytest.mark.parametrize(
    "text",
    [
        "mail\u200b\u2060 no\u200bbody@exam\u00adple.com ok",
        r"{\"mail\":\"nobody\u0040example.com\"}",
        r"line\nnobody@example.com\n",
        "u=nobody%40example.com&x=1",
        r"{\"a\":\"{\\\"b\\\":\\\"x\\\\nnobody@example.com\\\"}\"}",
    ],
)
def test_disguises_are_seen_through(text: str) -> None:
    """Format characters, JSON escapes (nested too) and percent signs hide nothing."""
    shown = redact(text).text
    assert "[EMAIL_" in shown
    assert "example" not in shown


def test_escapes_do_not_hide_a_key() -> None:
    r"""The `n` of a JSON `\n` is no letter before the key."""
    assert redact(r'{"x":"\nsk-ant-FAKEFAKEFAKE\n"}').text == r'{"x":"\n[API_KEY_1]\n"}'
    assert redact(r"\u5c71\u7530\u69d8").text == r"[NAME_1]\u69d8"


@pytest.mark.parametrize(
    "prefix", ["sk-ant-", "sk-proj-", "sk-sekisho-", "ghp_", "glpat-", "xoxb-", "AKIA", "AIza", "hf_"]
)
@pytest.mark.parametrize("length", range(12, 41, 4))
def test_a_key_that_was_cut_off_is_found(prefix: str, length: int) -> None:
    """From twelve characters on, with or without an ellipsis."""
    key = (prefix + "FAKE" * 10)[:length]
    for after in ("", "...", "…", " (cut)"):
        assert key not in redact(f"key {key}{after}").text


@pytest.mark.parametrize("cut", range(48, 140, 7))
def test_a_private_key_that_was_cut_off_is_found(cut: int) -> None:
    """Without its end, and without its beginning, in text and in JSON."""
    body = "\n".join(["FAKE" * 8] * 3)
    block = f"-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----"
    for text in (block[:cut], block.replace("\n", "\\n")[:cut], block[-cut:]):
        assert "FAKEFAKE" not in redact(f"key: {text}").text


@pytest.mark.parametrize(
    "text",
    [
        *(
            "東京都庁",
            "お客様",
            "皆様",
            "様々な",
            "さんま",
            "王様",
            "神様",
            "同様",
            "仕様",
            "摂氏",
            "氏名",
            "看護師さん",
            "ユーザー様",
        ),
        *(
            "2026-11-28",
            "10:30:00",
            "v1.24.3",
            "192.168.0.1",
            "ISBN 978-4-00-310101-8",
            "注文番号 1234567890",
            "order 4102335590",
        ),
        *("550e8400-e29b-41d4-a716-446655440000", "9fceb02d0ae598e95dc970b74767f19372d61af8", "4.532015112830366"),
        *("req_41111111111111110abcdef1", "password = getpass()", "password: str", "max_tokens=4096", "react@18.2.0"),
        *(
            "git@github.com:a/b",
            "sk-learn",
            "Dr Pepper",
            "postgresql://localhost/app",
            "マイナンバー 123456789012",
            "123456789018",
        ),
    ],
)
def test_look_alikes_pass(text: str) -> None:
    """Words, versions, dates, numbers and code that resemble personal data stay."""
    assert redact(f"これは {text} です").text == f"これは {text} です"
    assert redact(text).found == ()


@pytest.mark.parametrize(
    "text",
    [
        *("1" * 100_000, "@" * 100_000, "-" * 100_000, "a@" * 50_000, "1-" * 50_000, "1 " * 50_000, "\\" * 100_000),
        *(
            "様" * 100_000,
            "さん" * 50_000,
            "password=" * 10_000,
            "4111 1111 1111 1111 " * 5_000,
            "-----BEGIN PRIVATE KEY-----" * 4_000,
        ),
        *(
            "市" * 100_000,
            "東京都千代田区" * 14_000,
            "eyJ" * 33_000,
            "\u200b" * 100_000,
            "[EMAIL_1]" * 11_000,
            "%40" * 33_000,
        ),
        *(
            "a://b:" * 16_000,
            "Aa " * 33_000,
            "1丁目" * 30_000,
            "a@a.co " * 14_000,
            "山田太郎" * 25_000,
            "GB82WEST" * 12_000,
        ),
    ],
    ids=lambda text: ascii(text[:8]),
)
def test_hostile_texts_end(text: str) -> None:
    """A hundred thousand characters of one kind end well within the test's time: nothing grows with the square."""
    redact(text)


@given(st.text(st.characters(codec="utf-8"), max_size=200))
def test_any_text_is_taken(text: str) -> None:
    """No text raises, and one without finds is the same object's text."""
    redacted = redact(text)
    assert redacted.found or redacted.text == text
