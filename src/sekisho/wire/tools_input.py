"""The string `input` out of `{"input": "..."}` while the JSON still streams."""

import re

_SPACE = " \t\r\n"
_STRING_STOP = re.compile(r'["\\]')
_ESCAPES = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_REPLACEMENT = "\ufffd"


class _StringReader:
    """The inside of a JSON string, decoded from pieces cut anywhere, also within an escape or a surrogate pair.

    Lenient where models are sloppy: a bare control character and an unknown escape stand for themselves, a lone
    surrogate becomes U+FFFD.
    """

    def __init__(self) -> None:
        self._escape = ""  # an escape that is not complete yet
        self._high = ""  # the first half of a surrogate pair
        self.closed = False

    def feed(self, text: str, at: int) -> tuple[str, int]:
        """Decoded text and the place after what was used: the end of `text`, or just behind the closing quote."""
        out: list[str] = []
        while at < len(text):
            if self._escape:
                self._escape += text[at]
                at += 1
                out.append(self._unescape())
                continue
            stop = _STRING_STOP.search(text, at)
            end = stop.start() if stop else len(text)
            if end > at:
                out.append(self._lone() + text[at:end])
            if not stop:
                return "".join(out), len(text)
            at = end + 1
            if text[end] == '"':
                out.append(self._lone())
                self.closed = True
                break
            self._escape = "\\"
        return "".join(out), at

    def finish(self) -> str:
        """What is left when the text ends inside the string."""
        rest, self._escape = self._escape, ""
        return self._lone() + rest

    def _unescape(self) -> str:
        escape = self._escape
        if escape[1] != "u":
            self._escape = ""
            return self._lone() + _ESCAPES.get(escape[1], escape)
        if len(escape) < 6:
            return ""
        self._escape = ""
        try:
            code = int(escape[2:], 16)
        except ValueError:
            return self._lone() + escape
        if 0xD800 <= code < 0xDC00:
            lone, self._high = self._lone(), chr(code)
            return lone
        if 0xDC00 <= code < 0xE000:
            if not self._high:
                return _REPLACEMENT
            high, self._high = ord(self._high), ""
            return chr(0x10000 + ((high - 0xD800) << 10) + (code - 0xDC00))
        return self._lone() + chr(code)

    def _lone(self) -> str:
        if not self._high:
            return ""
        self._high = ""
        return _REPLACEMENT


class InputReader:
    """Feed the arguments of the function that stands for a custom tool; get the tool's input.

    A model that forgets the wrapping and writes the input itself is understood: text that is no JSON object is passed
    on as it is, and an object without a string `input` is handed over whole at the end. Nothing is lost.
    """

    def __init__(self) -> None:
        self._seen = ""  # everything so far, until the input has begun
        self._at = 0
        self._string: _StringReader | None = None
        self._mode = "open"  # open -> object -> input -> done; or raw

    def feed(self, text: str) -> str:
        if self._mode == "done" or not text:
            return ""
        if self._mode == "raw":
            return text
        if self._mode == "input":
            return self._read(text, 0)
        self._seen += text
        if self._mode == "open":
            start = self._seen.lstrip(_SPACE)
            if not start:
                return ""
            if start[0] != "{":
                self._mode = "raw"
                return self._seen
            self._mode = "object"
            self._at = len(self._seen) - len(start) + 1
        begin = self._find_input()
        if begin is None:
            return ""
        self._mode = "input"
        self._string = _StringReader()
        return self._read(self._seen, begin)

    def finish(self) -> str:
        mode, self._mode = self._mode, "done"
        if mode == "input" and self._string:
            return self._string.finish()
        if mode in ("open", "object"):
            return self._seen if self._seen.strip(_SPACE) not in ("", "{}") else ""
        return ""

    def _read(self, text: str, at: int) -> str:
        assert self._string is not None
        out, _ = self._string.feed(text, at)
        if self._string.closed:
            self._mode = "done"
        return out

    def _find_input(self) -> int | None:
        """The place after the quote that opens the value of `input`; None until it is there. Keeps, in `_at`, the
        place up to which whole members were passed over, so that nothing is read twice."""
        text = self._seen
        while True:
            at = _skip(text, self._at, _SPACE + ",")
            key = _string_end(text, at)
            if key is None:
                return None
            value = _skip(text, key, _SPACE + ":")
            if value >= len(text):
                return None
            if text[at:key] == '"input"' and text[value] == '"':
                return value + 1
            end = _value_end(text, value)
            if end is None:
                return None
            self._at = end


def _skip(text: str, at: int, characters: str) -> int:
    while at < len(text) and text[at] in characters:
        at += 1
    return at


def _string_end(text: str, at: int) -> int | None:
    """The place after the string that opens at `at`; None where none opens there or it has not ended."""
    if at >= len(text) or text[at] != '"':
        return None
    at += 1
    while stop := _STRING_STOP.search(text, at):
        if stop.group() == '"':
            return stop.end()
        at = stop.end() + 1
    return None


def _value_end(text: str, at: int) -> int | None:
    """The place after the JSON value at `at`; None where it has not surely ended."""
    depth = 0
    while at < len(text):
        character = text[at]
        if character == '"':
            end = _string_end(text, at)
            if end is None:
                return None
            at = end
            if depth == 0:
                return at
            continue
        if character in "{[":
            depth += 1
        elif character in "}]":
            depth -= 1
            if depth <= 0:
                return at + 1 if depth == 0 else at
        elif character == "," and depth == 0:
            return at
        at += 1
    return None
