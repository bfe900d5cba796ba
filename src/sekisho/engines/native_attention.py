"""Puts Sekisho's attention among llama.cpp's sources before they are compiled.

llama.cpp unpacks every cached key and value once for each query head, and quantised ones by code without vector
instructions; the kernel in `native_sources` unpacks a block once for all heads and rows that share it. It is two files
beside llama.cpp's operators, and two places in `ops.cpp` that lead there.
"""

import hashlib
import re
import subprocess
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Final

OFF_ENV: Final = "SEKISHO_NATIVE_ATTENTION"
"""At `0`, a build computes attention as llama.cpp does."""
ENTRY: Final = "sekisho_attention_op.hpp"
_SOURCES: Final = "native_sources"
_OPERATORS: Final = Path("ggml/src/ggml-cpu/ops.cpp")
_INCLUDES: Final = ("ggml/include", "ggml/src", "ggml/src/ggml-cpu")
_LEADING_INCLUDES: Final = re.compile(r"\A(?:\s*#include [^\n]*\n)+")
_FUNCTION: Final = re.compile(
    r"^void ggml_compute_forward_flash_attn_ext\(\s*const ggml_compute_params \* params,\s*ggml_tensor \* dst\) \{\n",
    re.MULTILINE,
)
_CALL: Final = (
    "#ifdef SEKISHO_ATTENTION\n    if (sekisho::flash_attention(params, dst)) {\n        return;\n    }\n#endif\n"
)
_FOR_THIS_PROCESSOR: Final = ("-march=native", "-mcpu=native")  # a compiler may know one of them only
_CHECK_S: Final = 300

Check = Callable[[Sequence[str]], bool]
"""Whether a command ends well."""


def files() -> dict[str, str]:
    """The sources, by name."""
    folder = resources.files("sekisho.engines") / _SOURCES
    return {each.name: each.read_text("utf-8") for each in folder.iterdir() if each.name.endswith(".hpp")}


def fingerprint() -> str:
    """Of all that is put among llama.cpp's sources."""
    parts = [_CALL, *(part for pair in sorted(files().items()) for part in pair)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def with_call(operators: str) -> str | None:
    """`ops.cpp`, leading to ours; None where it is not as this release knows it. Pure."""
    if ENTRY in operators:
        return operators
    includes = _LEADING_INCLUDES.match(operators)
    found = list(_FUNCTION.finditer(operators))
    if includes is None or len(found) != 1:
        return None
    head, body = operators[: includes.end()], operators[includes.end() : found[0].end()]
    return f'{head}#include "{ENTRY}"\n{body}{_CALL}{operators[found[0].end() :]}'


def add(llama: Path, cpp: str, flags: Iterable[str] = (), check: Check | None = None) -> bool:
    """Whether the sources under `llama` compute attention our way from now on: False, and nothing of ours in them,
    where they are not as known or `cpp`, the compiler, refuses ours. `flags`: what it will be called with. Raises
    OSError."""
    operators = llama / _OPERATORS
    try:
        changed = with_call(operators.read_text("utf-8"))
    except UnicodeDecodeError:
        changed = None
    if changed is None:
        return False
    for name, text in files().items():
        _write(operators.with_name(name), text)
    _write(operators, changed)
    includes = [f"-I{llama / each}" for each in _INCLUDES]
    rest = ("-std=c++17", "-fsyntax-only", "-w", "-DSEKISHO_ATTENTION_REQUIRED", *flags, *includes, str(operators))
    if any((check or _ends_well)((cpp, native, *rest)) for native in _FOR_THIS_PROCESSOR):
        return True
    _write(operators, without_call(changed))
    for name in files():
        operators.with_name(name).unlink()
    return False


def without_call(operators: str) -> str:
    return operators.replace(f'#include "{ENTRY}"\n', "").replace(_CALL, "")


def _write(path: Path, text: str) -> None:
    """What is as it was stays untouched, so that it is not compiled again."""
    if path.exists() and path.read_text("utf-8") == text:
        return
    draft = path.with_name(f".{path.name}")
    draft.write_text(text, "utf-8")
    draft.replace(path)


def _ends_well(command: Sequence[str]) -> bool:
    quiet = subprocess.DEVNULL
    try:
        done = subprocess.run(command, stdin=quiet, stdout=quiet, stderr=quiet, timeout=_CHECK_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
