"""Identifiers. Random 96-bit, prefixed by what they name, safe in URLs, headers and file names."""

import os


def new(prefix: str) -> str:
    """`new("resp")` -> `resp_` and 24 hex digits. OpenAI's chat ids use a dash: pass `chatcmpl-` for that."""
    joint = "" if prefix.endswith(("-", "_")) else "_"
    return f"{prefix}{joint}{os.urandom(12).hex()}"
