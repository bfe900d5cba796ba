"""The trap in AMX: compilers that drop most of a tile's configuration before the processor reads it.

gcc's `_tile_loadconfig` told the optimiser that the instruction reads 8 bytes, not 64: what was written to the other 56
may be thrown away. llama.cpp writes its configuration just before that call, and its first matrix product then ends in
a general protection fault (SIGSEGV). Seen with gcc 11 (ollama/ollama#17205, closed by building with gcc 13) and 12.2
(here); ggml-org/llama.cpp#20824 and #26954 are open about it. Whether this compiler does so is not looked up but tried:
a program with the same shape is compiled, runs in a process of its own and compares what the processor has loaded. With
`BARRIER`, a header put before every source, the configuration is complete when the instruction reads it.
"""

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple

Outcome = Literal["right", "dropped", "refused", "uncompiled"]
Treatment = Literal["none", "barrier", "without_amx"]
Try = Callable[[Sequence[str]], Outcome]

NO_AMX: Final = ("-mno-amx-tile", "-mno-amx-int8", "-mno-amx-bf16")
BARRIER_NAME: Final = "tile_barrier.h"
BARRIER: Final = """\
/* Put before every source: all bytes of a tile configuration are in memory when the processor loads it. */
#if defined(__AMX_TILE__) && !defined(SEKISHO_TILE_BARRIER)
#define SEKISHO_TILE_BARRIER
#include <immintrin.h>
static inline __attribute__((always_inline)) const void * sekisho_in_memory(const void * bytes) {
    __asm__ volatile("" : : "r"(bytes) : "memory");
    return bytes;
}
#undef _tile_loadconfig
#define _tile_loadconfig(bytes) ((_tile_loadconfig)(sekisho_in_memory(bytes)))
#endif
"""
_PROBE: Final = """\
#include <immintrin.h>
#include <cstdint>
#include <cstring>
#include <sys/syscall.h>
#include <unistd.h>

struct layout { uint8_t palette = 0, first = 0, unused[14] = {}; uint16_t bytes[16] = {}; uint8_t rows[16] = {}; };

static inline void configure() {
    static thread_local bool ready = false;
    if (ready) return;
    alignas(64) layout wanted = {};
    wanted.palette = 1;
    for (int tile = 0; tile < 8; tile++) {
        wanted.rows[tile] = tile < 2 ? 8 : 16;
        wanted.bytes[tile] = tile == 2 || tile == 3 ? 32 : 64;
    }
    _tile_loadconfig(&wanted);
    ready = true;
}

int main() {
    if (syscall(SYS_arch_prctl, 0x1023 /* ask for a feature */, 18 /* the tiles */) != 0) return 4;
    configure();
    alignas(64) static uint8_t loaded[64];
    __asm__ volatile("sttilecfg %0" : "=m"(loaded));
    const layout * found = reinterpret_cast<const layout *>(loaded);
    bool same = found->palette == 1;
    for (int tile = 0; tile < 8; tile++)
        same = same && found->rows[tile] == (tile < 2 ? 8 : 16)
                    && found->bytes[tile] == (tile == 2 || tile == 3 ? 32 : 64);
    _tile_release();
    return same ? 0 : 3;
}
"""
_REFUSED: Final = 4  # what the probe ends with where the kernel says no
_DEADLINE_S: Final = 60.0


class Finding(NamedTuple):
    """`plain`: as the compiler does it by itself; None where there is nothing to try. `treated`: with the barrier."""

    treatment: Treatment
    plain: Outcome | None = None
    treated: Outcome | None = None


def find(features: frozenset[str], attempt: Try, barrier: Path) -> Finding:
    """What this compiler needs. `attempt` compiles and runs the probe with further flags."""
    if "amx_tile" not in features:
        return Finding("none")
    plain = attempt(())
    if plain in ("right", "refused"):  # without the kernel's leave llama.cpp leaves the tiles alone
        return Finding("none", plain)
    treated = attempt(included(barrier))
    return Finding("barrier" if treated == "right" else "without_amx", plain, treated)


def flags(treatment: Treatment, barrier: Path) -> tuple[str, ...]:
    """What the compiler is given for every source."""
    return {"none": (), "barrier": included(barrier), "without_amx": NO_AMX}[treatment]


def included(barrier: Path) -> tuple[str, ...]:
    return ("-include", str(barrier))


def after_crash(treatment: Treatment, features: frozenset[str]) -> Treatment | None:
    """How to build again where a build crashes although the probe did not; None: in no other way."""
    return "barrier" if treatment == "none" and "amx_tile" in features else None


def write_barrier(folder: Path) -> Path:
    path = folder / BARRIER_NAME
    path.write_text(BARRIER, encoding="utf-8")
    return path


def attempt(compiler: str, folder: Path, extra: Sequence[str] = ()) -> Outcome:
    """Compiles the probe in the folder and runs it. Takes about a second."""
    source, program = folder / "tiles.cpp", folder / "tiles"
    source.write_text(_PROBE, encoding="utf-8")
    command = [compiler, "-O3", "-march=native", "-std=c++17", *extra, str(source), "-o", str(program)]
    if _ended(command) != 0:
        return "uncompiled"
    code = _ended([str(program)])
    return "right" if code == 0 else "refused" if code == _REFUSED else "dropped"


def _ended(command: Sequence[str]) -> int | None:
    """The exit code, negative for a signal; None where it did not start or end."""
    try:
        quiet = subprocess.DEVNULL
        return subprocess.run(
            command, stdin=quiet, stdout=quiet, stderr=quiet, timeout=_DEADLINE_S, check=False
        ).returncode
    except (OSError, subprocess.TimeoutExpired):
        return None
