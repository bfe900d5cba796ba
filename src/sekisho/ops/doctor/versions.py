"""Packages that do not fit each other, the driver or the cards: read from their metadata, nothing is imported.

Sources of the rules:
- what a package requires: its own `Requires-Dist` and `Requires-Python` (so for vLLM and its torch, too)
- CUDA and driver: docs.nvidia.com/deploy/cuda-compatibility, "Minor Version Compatibility": a newer major CUDA than the
  driver's does not run; a newer minor one runs, without what is new in it
- CUDA and cards: CUDA 12.8 release notes (Blackwell, 10.0 and up, is added), 11.8 (Ada and Hopper, 8.9 and 9.0),
  11.1 (8.6), 11.0 (8.0), 13.0 (everything below Turing, 7.5, is dropped)
- torch and NumPy 2: PyTorch 2.3 release notes, first built for both
"""

import importlib
import re
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import TYPE_CHECKING

import msgspec

from sekisho.ops.doctor.finding import Case, Finding
from sekisho.ops.gpu_sample import Driver, parse_banner
from sekisho.ops.hardware import try_probe

if TYPE_CHECKING:
    from packaging.requirements import Requirement

PROBE_TIMEOUT_S = 3.0
FAMILY = (
    "torch",
    "torchvision",
    "torchaudio",
    "triton",
    "vllm",
    "transformers",
    "tokenizers",
    "huggingface-hub",
    "accelerate",
    "peft",
    "bitsandbytes",
    "xformers",
    "flash-attn",
    "flashinfer-python",
    "safetensors",
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "gguf",
    "xllamacpp",
    "llama-cpp-python",
)
CAPABILITIES: tuple[tuple[tuple[int, int], tuple[int, int]], ...] = (
    ((10, 0), (12, 8)),
    ((8, 9), (11, 8)),
    ((8, 6), (11, 1)),
    ((8, 0), (11, 0)),
)
"""A card of at least this capability needs a build with at least this CUDA. Newest first."""
DROPPED_BY_CUDA_13 = (7, 5)
NUMPY_2_SINCE_TORCH = (2, 3)

UNFIT = Case(
    "versions.unfit",
    "error",
    (
        "{package} {version} needs {requirement}; {found} is installed",
        "{package} {version} には {requirement} が必要ですが、{found} が入っています",
    ),
    ("the package's own metadata says so", "パッケージ自身のメタデータによります"),
    ('pip install "{requirement}"', 'pip install "{requirement}"'),
)
UNFIT_LIGHT = Case("versions.unfit", "warning", UNFIT.what, UNFIT.why, UNFIT.fix)
MISSING = Case(
    "versions.missing",
    "error",
    (
        "{package} {version} needs {requirement}, which is not installed",
        "{package} {version} に必要な {requirement} が入っていません",
    ),
    UNFIT.why,
    UNFIT.fix,
)
PYTHON = Case(
    "versions.python",
    "error",
    (
        "{package} {version} is not made for Python {python}",
        "{package} {version} は Python {python} に対応していません",
    ),
    ("it needs Python {needed}", "必要な Python: {needed}"),
    ("make the environment anew with such a Python", "対応する Python で仮想環境を作り直してください"),
)
TWICE = Case(
    "versions.twice",
    "warning",
    ("{package} is installed twice: {first} and {second}", "{package} が二重に入っています: {first} と {second}"),
    ("the first is used, the second may be mixed into it", "前者が使われ、後者のファイルが混ざることがあります"),
    (
        "pip uninstall {package}, until nothing is left, then install it once",
        "pip uninstall {package} を何も残らなくなるまで繰り返し、入れ直してください",
    ),
)
TWO_LLAMAS = Case(
    "versions.two_llama_cpp",
    "info",
    (
        "two builds of llama.cpp: xllamacpp {ours} and llama-cpp-python {other}",
        "llama.cpp が 2 種類あります: xllamacpp {ours} と llama-cpp-python {other}",
    ),
    (
        "Sekisho uses xllamacpp; the two may differ in what models and cards they know",
        "関所が使うのは xllamacpp です。対応するモデルやカードが両者で異なることがあります",
    ),
)
CUDA_TOO_NEW = Case(
    "versions.cuda_driver",
    "error",
    (
        "torch {torch} is built for CUDA {cuda}, the driver {driver} runs CUDA {runs} at most",
        "torch {torch} は CUDA {cuda} 用ですが、ドライバー {driver} が動かせるのは CUDA {runs} までです",
    ),
    (
        "a newer major version of CUDA does not run on this driver",
        "このドライバーでは新しいメジャーバージョンの CUDA は動きません",
    ),
    (
        "a newer driver, or: pip install torch --index-url https://download.pytorch.org/whl/cu{digits}",
        "ドライバーを更新するか: pip install torch --index-url https://download.pytorch.org/whl/cu{digits}",
    ),
)
CUDA_NEWER = Case(
    "versions.cuda_minor",
    "warning",
    CUDA_TOO_NEW.what,
    (
        "it runs by minor version compatibility, but kernels that are compiled at run time (Triton, PTX) can fail",
        "マイナーバージョン互換で動きますが、実行時コンパイル（Triton・PTX）は失敗することがあります",
    ),
    ("a driver for CUDA {cuda} or newer", "CUDA {cuda} 以降に対応したドライバーに更新してください"),
)
CPU_BUILD = Case(
    "versions.cpu_torch",
    "warning",
    (
        "torch {torch} is a build for processors, and there is an NVIDIA card",
        "NVIDIA のカードがありますが、torch {torch} は CPU 用です",
    ),
    ("it will not use the card", "カードは使われません"),
    (
        "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu{digits}",
        "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu{digits}",
    ),
)
CARD_TOO_NEW = Case(
    "versions.card_too_new",
    "error",
    (
        "the card has compute capability {capability}; torch {torch} with CUDA {cuda} has no code for it",
        "カードの compute capability は {capability} ですが、torch {torch}（CUDA {cuda}）には対応コードがありません",
    ),
    ("CUDA {needed} is the first that knows it", "対応するのは CUDA {needed} からです"),
    ("a torch for CUDA {needed} or newer", "CUDA {needed} 以降用の torch を入れてください"),
)
CARD_TOO_OLD = Case(
    "versions.card_too_old",
    "error",
    CARD_TOO_NEW.what,
    ("CUDA 13 dropped cards below 7.5", "CUDA 13 は 7.5 未満のカードに対応していません"),
    ("a torch for CUDA 12", "CUDA 12 用の torch を入れてください"),
)
NUMPY_TOO_NEW = Case(
    "versions.numpy",
    "warning",
    (
        "torch {torch} was built for NumPy 1; {numpy} is installed",
        "torch {torch} は NumPy 1 用ですが、{numpy} が入っています",
    ),
    ("tensors and arrays cannot be exchanged", "テンソルと配列を受け渡しできません"),
    ('pip install "numpy<2", or a torch of 2.3 or newer', 'pip install "numpy<2"、または torch 2.3 以降'),
)
NOT_COMPARED = Case(
    "versions.not_compared",
    "info",
    ("versions of packages are not compared", "パッケージのバージョンは比較していません"),
    ("the package `packaging` is not installed", "`packaging` が入っていません"),
    ("pip install packaging", "pip install packaging"),
)
GOOD = Case("versions.good", "ok", ("{count} packages fit each other", "パッケージ {count} 件の組み合わせは正常です"))


class Package(msgspec.Struct, frozen=True):
    """An installed distribution, by its metadata. `place` is the folder it lies in."""

    name: str
    version: str
    requires: tuple[str, ...]
    python: str
    place: str


def check_versions(path: Sequence[str] | None = None) -> list[Finding]:
    """Of what is installed on `path` (default: this interpreter's), and of the driver where there is one."""
    places = list(sys.path if path is None else path)
    packages = installed(places)
    findings = _twice(places)
    try:
        importlib.import_module("packaging.requirements")
    except ImportError:
        findings.append(NOT_COMPARED.found())
    else:
        for package in packages.values():
            findings += _unmet(package, places)
    findings += _llamas(packages) + check_torch(packages, *nvidia())
    return findings or [GOOD.found(count=len(packages))]


def installed(path: Sequence[str]) -> dict[str, Package]:
    """Sekisho, what it needs, and the family of packages that run models, as far as they are there."""
    ours = _find("sekisho", path)
    wanted = dict.fromkeys(["sekisho", *(_name(line) for line in (ours.requires if ours else ())), *FAMILY])
    found = ((name, _find(name, path)) for name in wanted)
    return {name: package for name, package in found if package is not None}


def _find(name: str, path: Sequence[str]) -> Package | None:
    return next(iter(_all(name, path)), None)


def _all(name: str, path: Sequence[str]) -> list[Package]:
    found: dict[str, Package] = {}
    for entry in metadata.distributions(name=name, path=list(path)):
        place = str(entry.locate_file(""))
        version = entry.metadata["Version"] or "?"
        python = entry.metadata["Requires-Python"] or ""
        found.setdefault(f"{place} {version}", Package(name, version, tuple(entry.requires or ()), python, place))
    return list(found.values())


def _name(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]).lower()


def _twice(path: Sequence[str]) -> list[Finding]:
    """Two versions of one package on the path."""
    findings = []
    for name in ("sekisho", *FAMILY):
        every = _all(name, path)
        for other in every[1:]:
            if other.version != every[0].version:
                first, second = (f"{package.version} ({package.place})" for package in (every[0], other))
                findings.append(TWICE.found(package=name, first=first, second=second))
    return findings


def _unmet(package: Package, path: Sequence[str]) -> list[Finding]:
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    told = {"package": package.name, "version": package.version}
    findings = []
    python = ".".join(map(str, sys.version_info[:3]))
    try:
        if package.python and not SpecifierSet(package.python).contains(python, prereleases=True):
            findings.append(PYTHON.found(python=python, needed=package.python, **told))
    except InvalidSpecifier:
        pass  # metadata that nobody can read says nothing
    for line in package.requires:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue  # as above
        needed = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if not needed and not _for_its_own_sake(requirement):
            continue
        there = _find(_name(requirement.name), path)
        words = f"{requirement.name}{requirement.specifier}"
        if there is None:
            findings += [MISSING.found(requirement=words, **told)] if needed else []
        elif not requirement.specifier.contains(there.version, prereleases=True):
            grave = package.name == "sekisho" or (needed and there.name == "torch")
            findings.append((UNFIT if grave else UNFIT_LIGHT).found(requirement=words, found=there.version, **told))
    return findings


def _for_its_own_sake(requirement: "Requirement") -> bool:
    """An extra named after the package it asks for, as transformers' `torch`: it counts where that package is there."""
    return requirement.marker is not None and requirement.marker.evaluate({"extra": _name(requirement.name)})


def _llamas(packages: dict[str, Package]) -> list[Finding]:
    ours, other = packages.get("xllamacpp"), packages.get("llama-cpp-python")
    if ours is None or other is None:
        return []
    return [TWO_LLAMAS.found(ours=ours.version, other=other.version)]


def nvidia() -> tuple[Driver | None, tuple[tuple[int, int], ...]]:
    """The driver and the compute capability of each card; (None, ()) where there is none."""
    banner = try_probe(["nvidia-smi"], PROBE_TIMEOUT_S)
    if banner is None or banner.code != 0:
        return None, ()
    cards = try_probe(["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"], PROBE_TIMEOUT_S)
    lines = cards.output.splitlines() if cards is not None and cards.code == 0 else []
    found = (re.fullmatch(r"(\d+)\.(\d+)", line.strip()) for line in lines)
    return parse_banner(banner.output), tuple((int(match[1]), int(match[2])) for match in found if match)


def check_torch(
    packages: dict[str, Package], driver: Driver | None, capabilities: Sequence[tuple[int, int]]
) -> list[Finding]:
    """torch against NumPy, the driver and the cards."""
    torch, numpy = packages.get("torch"), packages.get("numpy")
    if torch is None:
        return []
    findings = []
    if numpy is not None and numbers(numpy.version) >= (2,) and numbers(torch.version) < NUMPY_2_SINCE_TORCH:
        findings.append(NUMPY_TOO_NEW.found(torch=torch.version, numpy=numpy.version))
    if driver is None or driver.cuda is None:
        return findings
    digits = f"{driver.cuda[0]}{driver.cuda[1]}"
    if torch.version.endswith("+cpu"):
        return [*findings, CPU_BUILD.found(torch=torch.version, digits=digits)]
    cuda = torch_cuda(torch)
    if cuda is None:
        return findings
    told = {"torch": torch.version, "cuda": _dotted(cuda)}
    if cuda > driver.cuda:
        case = CUDA_TOO_NEW if cuda[0] > driver.cuda[0] else CUDA_NEWER
        findings.append(case.found(driver=driver.version, runs=_dotted(driver.cuda), digits=digits, **told))
    for capability in dict.fromkeys(capabilities):
        needed = next((toolkit for least, toolkit in CAPABILITIES if capability >= least), None)
        if needed is not None and cuda < needed:
            findings.append(CARD_TOO_NEW.found(capability=_dotted(capability), needed=_dotted(needed), **told))
        elif cuda[0] >= 13 and capability < DROPPED_BY_CUDA_13:
            findings.append(CARD_TOO_OLD.found(capability=_dotted(capability), **told))
    return findings


def torch_cuda(torch: Package) -> tuple[int, int] | None:
    """The CUDA that a torch is built for: from `+cu128`, else from the CUDA packages that it requires. None: another
    build, or not told."""
    local = re.fullmatch(r"cu(\d+)(\d)", torch.version.partition("+")[2])
    if local is not None:
        return int(local[1]), int(local[2])
    for line in torch.requires:
        pinned = re.match(r"(?:cuda-toolkit|nvidia-cuda-runtime(?:-cu\d+)?)(?:\[[^]]*\])?\s*==\s*(\d+)\.(\d+)", line)
        if pinned is not None:
            return int(pinned[1]), int(pinned[2])
    return None


def numbers(version: str) -> tuple[int, ...]:
    """Major and minor, without what a build adds."""
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:2])


def _dotted(pair: tuple[int, int]) -> str:
    return f"{pair[0]}.{pair[1]}"
