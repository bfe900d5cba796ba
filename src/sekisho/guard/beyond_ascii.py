"""The part of a text that is not ASCII, found without a look at each character in Python."""

_ASCII_BYTES = bytes(range(128))


def beyond_ascii(text: str) -> str:
    """The characters of `text` beyond ASCII, in their order."""
    if text.isascii():
        return ""
    return text.encode("utf-8", "surrogatepass").translate(None, _ASCII_BYTES).decode("utf-8", "surrogatepass")
