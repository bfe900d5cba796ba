"""What a model repository of the hub holds, and which of its files make one model.

HubError
├── NoNetwork         the hub cannot be reached
├── NoSuchModel       no such repository, revision or file
├── AccessDenied      gated or private; a token is missing or not allowed
├── NoSpace           the disk is too full
├── WrongContent      the bytes are not the ones that the hub announced
└── HubTrouble        anything else the hub answers, and connections that keep breaking
"""

import fnmatch
import re
from pathlib import PurePosixPath

import msgspec

SPLIT = re.compile(r"^(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf$")
PREFERRED = ("Q4_K_M", "MXFP4", "Q4_0", "Q5_K_M", "Q8_0", "F16")


class HubError(Exception):
    """Operational trouble with the hub; the message is for the user."""


class NoNetwork(HubError):
    pass


class NoSuchModel(HubError):
    pass


class AccessDenied(HubError):
    pass


class NoSpace(HubError):
    pass


class WrongContent(HubError):
    pass


class HubTrouble(HubError):
    pass


class HubFile(msgspec.Struct, frozen=True):
    """A file of a repository. `sha256` is None for small files that the hub keeps outside LFS."""

    path: str
    size_bytes: int
    sha256: str | None = None

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name


def parse_tree(body: bytes) -> list[HubFile]:
    """The answer of `/api/models/{repository}/tree/{revision}`. Raises HubTrouble."""
    try:
        entries = msgspec.json.decode(body, type=list[_TreeEntry])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise HubTrouble(f"the hub's file list cannot be read: {error}") from error
    return [
        HubFile(e.path, e.lfs.size, e.lfs.oid.removeprefix("sha256:")) if e.lfs else HubFile(e.path, e.size)
        for e in entries
        if e.type == "file"
    ]


class _Lfs(msgspec.Struct, frozen=True):
    oid: str
    size: int


class _TreeEntry(msgspec.Struct, frozen=True):
    type: str
    path: str
    size: int = 0
    lfs: _Lfs | None = None


def choose(files: list[HubFile], wanted: str | None = None) -> list[HubFile]:
    """The GGUF to fetch, all parts of a split one. `wanted`: a path, a pattern (`*Q8_0*`) or a quantisation.

    Raises NoSuchModel, naming what there is, when nothing or more than one model fits.
    """
    groups = _groups(files)
    if not groups:
        raise NoSuchModel("the repository has no GGUF file")
    if wanted is None:
        for quantisation in PREFERRED:
            fitting = [name for name in groups if _has(name, quantisation)]
            if fitting:
                return groups[min(fitting, key=len)]
        fitting = list(groups)
    else:
        exact = [name for name, parts in groups.items() if wanted in (name, *(part.path for part in parts))]
        fitting = exact or [n for n in groups if fnmatch.fnmatch(n.lower(), wanted.lower()) or _has(n, wanted)]
    if len({name.lower() for name in fitting}) == 1:  # some repositories hold one model under two spellings
        return groups[fitting[0]]
    listing = ", ".join(sorted(fitting or groups))
    word = "several files fit" if fitting else f"no file fits {wanted!r}"
    raise NoSuchModel(f"{word}; choose one with --file: {listing}")


def _groups(files: list[HubFile]) -> dict[str, list[HubFile]]:
    groups: dict[str, list[HubFile]] = {}
    for file in sorted(files, key=lambda f: f.path):
        if not file.path.lower().endswith(".gguf") or "mmproj" in file.name.lower():
            continue
        match = SPLIT.match(file.path)
        groups.setdefault(f"{match['stem']}.gguf" if match else file.path, []).append(file)
    return {name: parts for name, parts in groups.items() if _whole(parts)}


def _whole(parts: list[HubFile]) -> bool:
    match = SPLIT.match(parts[0].path)
    return match is None or len(parts) == int(match["parts"])


def _has(path: str, quantisation: str) -> bool:
    wanted = re.escape(quantisation)
    return re.search(rf"(?:^|[-_.]){wanted}(?:[-_.]|$)", PurePosixPath(path).name, re.IGNORECASE) is not None
