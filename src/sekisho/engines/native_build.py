"""llama.cpp built for this very machine: which builds there are, which one workers take, and how they take it.

A build lies in `<root>/<version>-<tag>`: the package in `site`, what is known of it in `manifest.json`. `use.json` in
the root names the one to use; without it, and for a build that does not fit, workers run the installed wheel. Only
processes that run models call `activate`; it does not touch the environment's own package.
"""

import hashlib
import importlib
import os
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal, NamedTuple

import msgspec

from sekisho.core.decoding import Undecodable, decoded
from sekisho.engines import native_machine
from sekisho.engines.native_attention import OFF_ENV
from sekisho.engines.native_machine import Processor

ENV: Final = "SEKISHO_NATIVE_ENGINE"
PACKAGE: Final = "xllamacpp"
WORTH: Final = 1.05
"""What a build has to gain, in reading or in writing, to be taken by itself."""
MANIFEST, CHOICE, SITE = "manifest.json", "use.json", "site"

Reason = Literal["version", "wheel", "system", "processor", "package", "gone"]
Speed = Literal["prefill", "decode"]


class Figure(msgspec.Struct, frozen=True):
    """Both measured by turns, `repeats` times each: medians in tokens/s, and native over wheel with its extremes."""

    speed: Speed
    model: str
    kv: str
    wheel_tokens_per_s: float
    native_tokens_per_s: float
    ratio: float
    ratio_low: float
    ratio_high: float
    repeats: int


class Manifest(msgspec.Struct, frozen=True):
    """`wheel`: fingerprint of the installed package that it stands in for. `features`: what the compiler may have used.
    `treatment`: of the trap in AMX (`native_trap`). `extra_buffers`: False where weights must stay as they are in the
    file. `attention`: it is Sekisho's (`native_attention`). `checked`: it has answered like the wheel. `built_at`:
    seconds since 1970."""

    version: str
    wheel: str
    system: str
    processor: str
    features: tuple[str, ...]
    compiler: str
    treatment: str
    cmake_args: tuple[str, ...]
    built_at: float
    took_s: float
    attention: bool = False
    extra_buffers: bool = True
    checked: bool = False
    figures: tuple[Figure, ...] = ()

    @property
    def is_worth_it(self) -> bool:
        """Answers like the wheel and, where it was measured, is faster in one way and in none clearly slower."""
        ratios = [figure.ratio for figure in self.figures]
        return self.checked and (not ratios or (max(ratios) >= WORTH and min(ratios) >= 1 / WORTH))


class Choice(msgspec.Struct, frozen=True):
    build: str


class Installed(msgspec.Struct, frozen=True):
    """The wheel in this environment."""

    version: str
    wheel: str


MISFIT_WORDS: Final[Mapping[Reason, tuple[str, str]]] = MappingProxyType(
    {
        "version": ("it is {built}, installed is {found}", "ビルドは {built}、インストール済みは {found}"),
        "wheel": (
            "another wheel of xllamacpp {found} has been installed since",
            "その後 xllamacpp {found} の別の wheel が入りました",
        ),
        "system": ("it was built on {built}, this is {found}", "{built} 用のビルドです（ここは {found}）"),
        "processor": (
            "this processor ({found}) lacks {built}",
            "このプロセッサー（{found}）には {built} がありません",
        ),
        "package": ("its package says {found}, not {built}", "パッケージの版が {built} ではなく {found} です"),
        "gone": ("{built} cannot be read: {found}", "{built} を読めません: {found}"),
    }
)
"""English and Japanese."""


class Misfit(NamedTuple):
    """Why a build is not used."""

    reason: Reason
    built: str
    found: str

    def __str__(self) -> str:
        return self.words()[0]

    def words(self) -> tuple[str, str]:
        """English and Japanese."""
        english, japanese = (each.format(built=self.built, found=self.found) for each in MISFIT_WORDS[self.reason])
        return english, japanese


class Unusable(Exception):
    """The chosen build is not to be used; `misfit` says why."""

    def __init__(self, misfit: Misfit) -> None:
        super().__init__(str(misfit))
        self.misfit = misfit


def environment(root: Path) -> dict[str, str]:
    """What a parent adds to the environment of a process that is to take the chosen build."""
    return {ENV: str(root)}


def installed() -> Installed | None:
    """The environment's own package, from its metadata; nothing is imported."""
    try:
        found = metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        return None
    record = found.read_text("RECORD") or ""
    return Installed(found.version, hashlib.sha256(record.encode()).hexdigest()[:16])


def misfit(manifest: Manifest, wheel: Installed | None, processor: Processor) -> Misfit | None:
    """Why this build is not for this environment and this processor; None where it is. Pure."""
    if wheel is None or wheel.version != manifest.version:
        return Misfit("version", manifest.version, wheel.version if wheel is not None else "none")
    if wheel.wheel != manifest.wheel:
        return Misfit("wheel", manifest.version, wheel.version)
    if processor.system != manifest.system:
        return Misfit("system", manifest.system, processor.system)
    lacking = sorted(set(manifest.features) - processor.features)
    if lacking:
        return Misfit("processor", " ".join(lacking), processor.name)
    return None


def builds(root: Path) -> dict[str, Manifest]:
    """All that can be read, by the name of their folder, newest first."""
    found: dict[str, Manifest] = {}
    for path in root.glob(f"*/{MANIFEST}"):
        try:
            found[path.parent.name] = decoded(path.read_bytes(), Manifest)
        except (OSError, Undecodable):
            continue  # it can be built again; `chosen` tells where it is the one in use
    return dict(sorted(found.items(), key=lambda item: -item[1].built_at))


def chosen(root: Path) -> str | None:
    """The name of the build that is to be used; None: the wheel. Raises Unusable where the note cannot be read."""
    try:
        return decoded((root / CHOICE).read_bytes(), Choice).build
    except FileNotFoundError:
        return None
    except (OSError, Undecodable) as error:
        raise Unusable(Misfit("gone", CHOICE, str(error))) from None


def usable(root: Path, build: str, wheel: Installed | None, processor: Processor) -> Manifest:
    """Raises Unusable."""
    folder = root / build
    try:
        manifest = decoded((folder / MANIFEST).read_bytes(), Manifest)
    except (OSError, Undecodable) as error:
        raise Unusable(Misfit("gone", f"{build}/{MANIFEST}", str(error))) from None
    found = misfit(manifest, wheel, processor)
    if found is not None:
        raise Unusable(found)
    versions = [each.version for each in metadata.distributions(name=PACKAGE, path=[str(folder / SITE)])]
    if versions != [manifest.version]:
        raise Unusable(Misfit("package", manifest.version, ", ".join(versions) or "nothing"))
    return manifest


_active: list[tuple[str, Manifest]] = []  # of this process: none or one, since a library is loaded once


def activate() -> Manifest | None:
    """Loads the chosen build in this process; None: the wheel is what will be loaded. To be called before anything
    imports xllamacpp. A build that does not fit or load is told in one line on standard error and passed over."""
    named = os.environ.get(ENV)
    if not named:
        return None
    if PACKAGE in sys.modules:
        raise RuntimeError(f"{PACKAGE} is loaded already: another build can no longer be taken")
    root = Path(named)
    try:
        build = chosen(root)
        if build is None:
            return None
        manifest = usable(root, build, installed(), native_machine.here())
    except Unusable as error:
        _tell(f"the native build of llama.cpp is not used: {error}")
        return None
    before = os.environ.get(OFF_ENV)
    if not manifest.attention:
        os.environ[OFF_ENV] = "0"  # read once by the library
    site = str(root / build / SITE)
    sys.path.insert(0, site)
    try:
        importlib.import_module(PACKAGE)
    except (ImportError, SyntaxError) as error:
        sys.path.remove(site)
        os.environ.pop(OFF_ENV, None)
        if before is not None:
            os.environ[OFF_ENV] = before
        for name in [each for each in sys.modules if each.partition(".")[0] == PACKAGE]:
            del sys.modules[name]
        _tell(f"the native build of llama.cpp is not used: it does not load: {error}")
        return None
    _active.append((build, manifest))
    _tell(f"llama.cpp runs as built for this machine ({build})")
    return manifest


def extra_buffers() -> bool:
    """Whether weights may be kept in another order than the file's in this process."""
    return not _active or _active[0][1].extra_buffers


def attention() -> bool:
    """Whether attention is Sekisho's in this process, so that quantised caches are read about as fast as 16 bits."""
    return os.environ.get(OFF_ENV) != "0" and any(manifest.attention for _, manifest in _active)


def software(version: str) -> str:
    """What ran a measurement: figures of the wheel and of a build are no baselines of each other."""
    return f"{PACKAGE} {version}" + "".join(f" native {build}" for build, _ in _active)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201
