"""What was found, as values."""

from typing import Literal

import msgspec

Kind = Literal[
    "EMAIL",
    "PHONE",
    "POSTAL_CODE",
    "ADDRESS",
    "CARD",
    "MY_NUMBER",
    "SOCIAL_SECURITY",
    "PASSPORT",
    "LICENCE",
    "BANK_ACCOUNT",
    "BIRTH_DATE",
    "NAME",
    "API_KEY",
    "PRIVATE_KEY",
    "PASSWORD",
    "TOKEN",
    "CONNECTION",
]
Span = tuple[int, int, Kind]


class Found(msgspec.Struct, frozen=True):
    """One piece of personal data or one secret: `text[start:end]` of the text that was searched."""

    kind: Kind
    start: int
    end: int
