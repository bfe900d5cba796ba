"""What the machine is taken for."""

from pathlib import Path

import msgspec
import psutil
from hypothesis import given, settings
from hypothesis import strategies as st

from sekisho.ops.hardware import Gpu, cgroup_limit, detect, parse_nvidia, parse_rocm, run_probe


def test_this_machine(tmp_path: Path) -> None:
    """The real machine has memory, at least one thread and a disk, never more memory than is built in."""
    found = detect(tmp_path / "not" / "made" / "yet")
    assert 0 < found.ram_available_bytes <= found.ram_total_bytes <= psutil.virtual_memory().total
    assert found.threads >= 1
    assert found.disk_free_bytes
    assert found.gpus or any("no graphics card" in note for note in found.notes)
    assert msgspec.json.decode(msgspec.json.encode(found))["threads"] == found.threads


def cgroup(root: Path, membership: str, **files: str) -> tuple[int, int] | None:
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_max", ".max").replace("_current", ".current")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "membership").write_text(membership)
    return cgroup_limit(root, root / "membership")


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
    assert cgroup_limit(tmp_path, tmp_path / "missing") is None


def test_nvidia_lines() -> None:
    """Each card is told with its memory; a board that does not tell it is kept, with the reason."""
    notes: list[str] = []
    gpus = parse_nvidia("NVIDIA H200, 143771, 143000\nNVIDIA GB10, [N/A], [N/A]\n", notes)
    assert gpus[0] == Gpu("NVIDIA H200", 143771 << 20, 143000 << 20, "nvidia")
    assert gpus[1].memory_total_bytes is None
    assert "GB10" in notes[0]


def test_rocm_json() -> None:
    """Warnings in front of the JSON and other entries beside the cards are passed over."""
    output = (
        'WARNING: low power\n{"card0": {"VRAM Total Memory (B)": "17163091968", "VRAM Total Used Memory (B)": '
        '"1000000", "Card Series": "Radeon RX 7800 XT"}, "system": {"Driver version": "6.7"}}'
    )
    assert parse_rocm(output, []) == [Gpu("Radeon RX 7800 XT", 17163091968, 17162091968, "amd")]


@settings(deadline=None)
@given(st.text(max_size=80))
def test_strange_tool_output_is_no_crash(output: str) -> None:
    """Whatever a vendor's tool prints, there is a list of cards."""
    assert isinstance(parse_nvidia(output, []), list)
    assert isinstance(parse_rocm(output, []), list)


def test_missing_tool_is_no_crash() -> None:
    """A tool that is missing, or that fails, says nothing."""
    assert run_probe(["no-such-tool-here"]) is None
    assert run_probe(["false"]) is None
    assert run_probe(["echo", "yes"]) == "yes\n"
