"""Models of the engine `torch`: the packages it needs, and folders of Hugging Face's form. Nothing is imported."""

import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from importlib import util
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, Final

import msgspec

from sekisho.core.decoding import Undecodable, decoded
from sekisho.engines import safetensors_header
from sekisho.engines.config import ModelConfig
from sekisho.ops.doctor import model_files, versions
from sekisho.ops.doctor.finding import Case, Finding, Patient, Words

LEAST: Final = {"torch": "2.6", "transformers": "5.24"}
"""As in the extra `kv` of pyproject.toml; numba, the third that counts there, has a substitute."""
# Where transformers looks, in this order; a tokenizer has one of many forms.
WEIGHTS: Final = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
TOKENIZERS: Final = ("tokenizer*", "vocab*", "*.model", "*.tiktoken", "tekken.json")

_INSTALL: Words = ("pip install 'sekisho[kv]'", "pip install 'sekisho[kv]'")
_FETCH: Words = (
    "fetch it again, as in: hf download OWNER/NAME --local-dir {quoted}",
    "取得し直してください。例: hf download OWNER/NAME --local-dir {quoted}",
)
_WHAT: Words = ("{model}: {path}", "{model}: {path}")

PACKAGES_GOOD = Case("torch_engine.good", "ok", ("the engine torch: {packages}", "エンジン torch: {packages}"))
PACKAGES_MISSING = Case(
    "torch_engine.missing",
    "error",
    ("{models}: the engine torch needs {missing}", "{models}: エンジン torch には {missing} が必要です"),
    ("not installed in {place}, where Sekisho runs", "関所が動いている環境 {place} に入っていません"),
    _INSTALL,
)
PACKAGES_OLD = Case(
    "torch_engine.too_old",
    "error",
    (
        "{models}: the engine torch needs {package} {least} or newer",
        "{models}: エンジン torch には {package} {least} 以降が必要です",
    ),
    ("{version} is installed in {place}", "{place} には {version} が入っています"),
    ("pip install --upgrade 'sekisho[kv]'", "pip install --upgrade 'sekisho[kv]'"),
)
PACKAGES_BROKEN = Case(
    "torch_engine.broken",
    "error",
    ("{models}: {package} {version} cannot be imported", "{models}: {package} {version} を読み込めません"),
    (
        "{place} lists it, but its files are not there",
        "{place} の一覧にはありますが、ファイルがありません",
    ),
    ("pip install --force-reinstall {package}", "pip install --force-reinstall {package}"),
)
FOLDER_GOOD = Case("torch_model.good", "ok", _WHAT)
NO_FOLDER = Case(
    "torch_model.no_folder",
    "error",
    _WHAT,
    ("no such folder, and no GGUF file", "フォルダーでも GGUF ファイルでもありません"),
    (
        "put the model's folder there, or correct `path`",
        "モデルのフォルダーを置くか、`path` を直してください",
    ),
)
NO_CONFIG = Case(
    "torch_model.no_config",
    "error",
    _WHAT,
    ("config.json is not there", "config.json がありません"),
    (
        "name the folder that holds config.json; in Hugging Face's cache that is one below snapshots",
        "config.json のあるフォルダーを指定してください（Hugging Face のキャッシュでは snapshots の下）",
    ),
)
BAD_CONFIG = Case(
    "torch_model.bad_config",
    "error",
    _WHAT,
    ("{file} cannot be read: {why}", "{file} を読み取れません: {why}"),
    _FETCH,
)
NO_WEIGHTS = Case(
    "torch_model.no_weights",
    "error",
    _WHAT,
    (
        "no weights: neither model.safetensors nor its index is there",
        "重みがありません（model.safetensors もその index もありません）",
    ),
    _FETCH,
)
PARTS_MISSING = Case(
    "torch_model.parts_missing",
    "error",
    _WHAT,
    ("weights are missing: {files}", "重みの一部がありません: {files}"),
    _FETCH,
)
BAD_WEIGHTS = Case(
    "torch_model.bad_weights",
    "error",
    _WHAT,
    ("{file}: {why}", "{file}: {why}"),
    ("{fix}", "{fix}"),
)
NO_TOKENIZER = Case(
    "torch_model.no_tokenizer",
    "error",
    _WHAT,
    ("no tokenizer is there, as tokenizer.json", "tokenizer.json などのトークナイザーがありません"),
    _FETCH,
)
_FAULTS: Final[dict[safetensors_header.Fault, Words]] = {
    "pointer": ("a Git LFS pointer, not the weights", "Git LFS のポインターで、重みではありません"),
    "cut_off": ("cut off (an unfinished download?)", "途中で切れています（ダウンロードの未完了？）"),
    "damaged": ("damaged: not what a safetensors file is", "壊れています（safetensors の形ではありません）"),
}


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def check_torch_models(patient: Patient) -> list[Finding]:
    """What they need, once for all, and each one's files."""
    models = [model for model in patient.models if model.engine == "torch"]
    if not models:
        return []
    found = check_packages([model.name for model in models])
    return found + [finding for model in models for finding in check_model(model)]


def check_packages(models: Iterable[str], path: Sequence[str] | None = None) -> list[Finding]:
    """PyTorch and transformers: installed on `path` (default: where this Python looks), new enough, importable."""
    packages = versions.installed(sys.path if path is None else path)
    told = {"models": ", ".join(models), "place": sys.prefix}
    missing, findings, good = [], [], []
    for name, least in LEAST.items():
        package, there = packages.get(name), _importable(name, path)
        if package is None and not there:
            missing.append(name)
        elif not there:
            findings.append(PACKAGES_BROKEN.found(package=name, version=package.version if package else "?", **told))
        elif package is not None and versions.numbers(package.version) < versions.numbers(least):
            findings.append(PACKAGES_OLD.found(package=name, least=least, version=package.version, **told))
        else:
            good.append(f"{name} {package.version if package else '?'}")
    if missing:
        names: Words = (" and ".join(missing), " と ".join(missing))
        findings.insert(0, PACKAGES_MISSING.found(missing=names, **told))
    return findings or [PACKAGES_GOOD.found(packages=", ".join(good))]


def _importable(name: str, path: Sequence[str] | None) -> bool:
    """Whether there is more than a folder of that name, which would be a package too, of a kind."""
    spec = util.find_spec(name) if path is None else PathFinder.find_spec(name, path)
    return spec is not None and spec.origin is not None


def check_model(model: ModelConfig) -> list[Finding]:
    """The folder (or the GGUF file) and the chat template of one model."""
    path = Path(model.path or "").expanduser()
    if model.path in (None, "builtin") or (path.suffix == ".gguf" and not path.is_dir()):
        return model_files.check_model_files(model)
    findings = [] if (found := folder_fault(model.name, path)) is None else [found]
    if model.chat_template is not None:
        fault = model_files.file_fault(Path(model.chat_template).expanduser(), is_gguf=False)
        if fault is not None:
            told = {"model": model.name, "field": "chat_template", "path": model.chat_template}
            findings.append(model_files.BAD.found(why=fault[0], fix=fault[1], **told))
    return findings or [FOLDER_GOOD.found(model=model.name, path=path)]


def folder_fault(model: str, folder: Path) -> Finding | None:
    """The first thing that keeps a folder from being loaded, as far as its files tell. Raises OSError."""
    told = {"model": model, "path": folder, "quoted": shlex.quote(str(folder))}
    if not folder.is_dir():
        return NO_FOLDER.found(**told)
    if not (folder / "config.json").is_file():
        return NO_CONFIG.found(**told)
    reading = "config.json"
    try:
        config = decoded((folder / reading).read_bytes(), dict[str, Any])
        reading = next((name for name in _places(config) if os.path.lexists(folder / name)), "")
        if not reading:
            return NO_WEIGHTS.found(**told)
        files = _files(folder, reading)
    except Undecodable as error:
        return BAD_CONFIG.found(file=reading, why=error, **told)
    return _weights_fault(folder, files, told) or _tokenizer_fault(folder, told)


def _places(config: dict[str, Any]) -> tuple[str, ...]:
    """Names under which transformers would look for the weights."""
    named = config.get("transformers_weights")
    return (named,) if isinstance(named, str) else WEIGHTS


def _files(folder: Path, name: str) -> list[str]:
    """The file itself, or those that an index names. Raises `Undecodable`."""
    if not name.endswith(".index.json") or not (folder / name).is_file():
        return [name]
    return sorted(set(decoded((folder / name).read_bytes(), _Index).weight_map.values()))


def _weights_fault(folder: Path, files: Sequence[str], told: dict[str, Any]) -> Finding | None:
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        more = f" … (+{len(missing) - 3})" if len(missing) > 3 else ""
        return PARTS_MISSING.found(files=", ".join(missing[:3]) + more, **told)
    for name in files:
        fault = safetensors_header.problem(folder / name) if name.endswith(".safetensors") else None
        if fault is not None:
            quoted = told["quoted"]
            again: Words = (_FETCH[0].format(quoted=quoted), _FETCH[1].format(quoted=quoted))
            pull: Words = (f"git -C {quoted} lfs pull", f"git -C {quoted} lfs pull")
            fix = pull if fault == "pointer" else again
            return BAD_WEIGHTS.found(file=name, why=_FAULTS[fault], fix=fix, **told)
    return None


def _tokenizer_fault(folder: Path, told: dict[str, Any]) -> Finding | None:
    there = any(file for pattern in TOKENIZERS for file in folder.glob(pattern))
    return None if there else NO_TOKENIZER.found(**told)
