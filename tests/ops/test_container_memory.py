"""The memory of the container that we run in."""

from pathlib import Path

import pytest

from sekisho.ops import container_memory


def cgroup(root: Path, membership: str, **files: str) -> tuple[int, int] | None:
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_max", ".max").replace("_current", ".current")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "membership").write_text(membership)
    found = container_memory.read(root, root / "membership")
    return None if found is None else (found.limit_bytes, found.used_bytes)


def test_tightest_limit_on_the_way_up_counts(tmp_path: Path) -> None:
    """A pod's limit binds although the container itself says `max`."""
    limit = cgroup(
        tmp_path,
        "0::/pod/box\n",
        pod__memory_max="4000\n",
        pod__memory_current="1000\n",
        pod__box__memory_max="max\n",
        pod__box__memory_current="900\n",
    )
    assert limit == (4000, 1000)


def test_version_one_limit(tmp_path: Path) -> None:
    """The older hierarchy is read too, and its huge number means no limit."""
    folder = tmp_path / "memory" / "box"
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text("5000\n")
    (folder / "memory.usage_in_bytes").write_text("70\n")
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert cgroup(tmp_path, "11:cpu,cpuacct:/box\n9:memory:/box\n") == (5000, 70)


def test_no_limit(tmp_path: Path) -> None:
    """No limit, no cgroup file or no Linux: None."""
    assert cgroup(tmp_path, "0::/\n", memory_max="max\n") is None
    assert container_memory.read(tmp_path, tmp_path / "missing") is None


@pytest.mark.parametrize("version", [1, 2])
def test_a_container_needs_what_it_cannot_give_back(tmp_path: Path, version: int) -> None:
    """The tightest limit on the way up counts; files that were not read lately are no use."""
    root = tmp_path / "cgroup"
    base = root if version == 2 else root / "memory"
    (base / "a" / "b").mkdir(parents=True)
    limit, usage, cached = {
        2: ("memory.max", "memory.current", "inactive_file"),
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    }[version]
    unlimited = "max" if version == 2 else str(2**63 - 4096)
    for folder, told in ((base / "a", "1000"), (base / "a" / "b", unlimited)):
        (folder / limit).write_text(told)
        (folder / usage).write_text("900\n")
        (folder / "memory.stat").write_text(f"anon 1\n{cached} 600\n")
    membership = tmp_path / "self"
    membership.write_text("0::/a/b\n" if version == 2 else "5:cpu:/\n4:memory:/a/b\n")
    assert container_memory.read(root, membership) == container_memory.ContainerMemory(1000, 900, 300)
    assert container_memory.read(root, tmp_path / "none") is None
