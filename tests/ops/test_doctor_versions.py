"""Findings about packages that do not fit: metadata as the real packages have it, in folders on the path."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))  # the harness lies beside the tests

from doctor_harness import Programs, cases, only

from sekisho.ops.doctor import Finding, versions
from sekisho.ops.doctor.versions import Package, torch_cuda

# From the metadata on PyPI of torch 2.9.0, 2.11.0, vLLM 0.11.0 and transformers 5.5.4.
TORCH_29 = ('nvidia-cuda-runtime-cu12==12.8.90; platform_system == "Linux" and platform_machine == "x86_64"',)
TORCH_211 = ('cuda-toolkit[cublas,cudart,nvrtc]==13.0.2; platform_system == "Linux"',)
VLLM_011 = ("numpy", "transformers>=4.55.2", "torch==2.8.0")
TRANSFORMERS = ("numpy>=1.17", 'torch>=2.4; extra == "torch"', 'torchvision; extra == "vision"')


class Site:
    """A folder of installed packages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def install(self, name: str, version: str, *requires: str, python: str = ">=3.10") -> "Site":
        place = self.folder / f"{name.replace('-', '_')}-{version}.dist-info"
        place.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", f"Requires-Python: {python}"]
        (place / "METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {line}" for line in requires), "", ""]))
        return self

    def found(self, *others: "Site") -> list[Finding]:
        return versions.check_versions([str(site.folder) for site in (self, *others)])


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "site")


@pytest.fixture(autouse=True)
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    """No driver, until a test puts one there."""
    return Programs(tmp_path / "bin", monkeypatch)


def driver(cuda: str, capability: str, version: str = "550.54.15") -> str:
    """`nvidia-smi` of a driver, as far as it is asked."""
    banner = f"| NVIDIA-SMI {version}   Driver Version: {version}   CUDA Version: {cuda} |"
    return f'case "$1" in --query-gpu=compute_cap) echo {capability} ;; *) echo "{banner}" ;; esac'


def test_this_environment() -> None:
    """What is installed here fits, and is read without importing any of it."""
    loaded = set(sys.modules)
    found = versions.check_versions()
    assert "versions.good" in [finding.case for finding in found], found
    assert not {"torch", "transformers", "vllm"} & (set(sys.modules) - loaded)


def test_vllm_with_another_torch(site: Site) -> None:
    """vLLM's own metadata says which torch it needs."""
    site.install("vllm", "0.11.0", *VLLM_011).install("torch", "2.9.0+cu128").install("numpy", "2.1.0")
    site.install("transformers", "4.57.0", *TRANSFORMERS)
    found = only(site.found())
    assert (found.case, found.severity) == ("versions.unfit", "error")
    assert (found.what, found.fix) == (
        "vllm 0.11.0 needs torch==2.8.0; 2.9.0+cu128 is installed",
        'pip install "torch==2.8.0"',
    )


def test_a_local_version_fits_its_release(site: Site) -> None:
    """2.8.0+cu126 is a 2.8.0."""
    site.install("vllm", "0.11.0", *VLLM_011).install("torch", "2.8.0+cu126").install("numpy", "1.26.0")
    site.install("transformers", "4.57.0", *TRANSFORMERS)
    assert only(site.found()).case == "versions.good"


def test_what_is_missing(site: Site) -> None:
    """A required package that is not there is an error; one behind an extra is not."""
    site.install("vllm", "0.11.0", *VLLM_011).install("torch", "2.8.0").install("numpy", "2.1.0")
    found = only(site.found())
    assert (found.case, "transformers>=4.55.2" in found.what) == ("versions.missing", True)


def test_transformers_and_an_old_torch(site: Site) -> None:
    """The extra named after torch counts where torch is there: a warning, since transformers then goes without."""
    site.install("transformers", "5.5.4", *TRANSFORMERS).install("torch", "2.3.1").install("numpy", "1.26.0")
    found = only(site.found())
    assert (found.case, found.severity, "torch>=2.4" in found.what) == ("versions.unfit", "warning", True)


def test_a_package_for_another_python(site: Site) -> None:
    """An environment whose Python was changed under it."""
    site.install("vllm", "0.6.0", python=">=3.8,<3.10")
    found = only(site.found())
    assert (found.case, "<3.10" in found.why) == ("versions.python", True)


def test_metadata_that_nobody_can_read(site: Site) -> None:
    """Broken lines are passed over."""
    site.install("vllm", "0.6.0", "torch (>>2", "???", python="whatever").install("torch", "not-a-version")
    site.found()


def test_installed_twice(site: Site, tmp_path: Path) -> None:
    """Two versions on the path are told with their places; the same one twice is not."""
    other = Site(tmp_path / "other").install("xllamacpp", "0.1.9")
    site.install("xllamacpp", "2026.10.1")
    found = only(site.found(other))
    assert (found.case, str(site.folder) in found.what, str(other.folder) in found.what) == (
        "versions.twice",
        True,
        True,
    )
    assert only(site.found(site)).case == "versions.good"


def test_two_llama_cpp(site: Site) -> None:
    """xllamacpp beside llama-cpp-python: said, and no more."""
    site.install("xllamacpp", "2026.10.1").install("llama-cpp-python", "0.3.9")
    found = only(site.found())
    assert (found.case, found.severity) == ("versions.two_llama_cpp", "info")


def test_cuda_against_the_driver(site: Site, card: Programs) -> None:
    """A newer major CUDA is an error, a newer minor one a warning, an older one fine: as NVIDIA documents it."""
    site.install("torch", "2.11.0", *TORCH_211)
    card.put("nvidia-smi", driver("12.4", "9.0"))
    installed = versions.installed([str(site.folder)])
    found = only(versions.check_torch(installed, *versions.nvidia()))
    assert (found.case, found.severity) == ("versions.cuda_driver", "error")
    assert found.fix.endswith("/cu124")
    card.put("nvidia-smi", driver("13.2", "9.0", "595.10"))
    assert versions.check_torch(installed, *versions.nvidia()) == []


def test_minor_version_compatibility(site: Site, card: Programs) -> None:
    """CUDA 12.8 on a driver for 12.4 runs, with a warning about what is compiled at run time."""
    site.install("torch", "2.9.0", *TORCH_29)
    card.put("nvidia-smi", driver("12.4", "8.6"))
    found = only(versions.check_torch(versions.installed([str(site.folder)]), *versions.nvidia()))
    assert (found.case, found.severity, "12.8" in found.fix) == ("versions.cuda_minor", "warning", True)


def test_a_torch_for_processors_beside_a_card(site: Site, card: Programs) -> None:
    """It would not use the card; without a card it is right."""
    site.install("torch", "2.13.0+cpu")
    assert only(site.found()).case == "versions.good"
    card.put("nvidia-smi", driver("12.8", "8.6"))
    assert only(site.found()).case == "versions.cpu_torch"


@pytest.mark.parametrize(
    ("torch", "capability", "case"),
    [
        ("2.6.0+cu124", "12.0", "versions.card_too_new"),
        ("2.7.0+cu128", "12.0", None),
        ("2.0.1+cu117", "8.9", "versions.card_too_new"),
        ("2.6.0+cu124", "8.6", None),
        ("2.11.0+cu130", "7.0", "versions.card_too_old"),
        ("2.11.0+cu130", "7.5", None),
        ("2.8.0+rocm6.4", "12.0", None),
    ],
)
def test_cards_that_a_build_does_not_know(
    site: Site, card: Programs, torch: str, capability: str, case: str | None
) -> None:
    """Blackwell needs CUDA 12.8, Ada 11.8; CUDA 13 dropped Volta; another vendor's build is not judged."""
    site.install("torch", torch)
    card.put("nvidia-smi", driver("13.2", capability, "595.10"))
    assert cases(site.found()) == ([case] if case else [])


def test_numpy_2_and_an_old_torch(site: Site) -> None:
    """torch 2.2 was built for NumPy 1."""
    site.install("torch", "2.2.2").install("numpy", "2.1.0")
    assert only(site.found()).case == "versions.numpy"


def test_without_packaging(tmp_path: Path, site: Site) -> None:
    """Where `packaging` is not there, that is said, and the rest is still looked at."""
    site.install("torch", "2.2.2").install("numpy", "2.1.0")
    script = (
        "import sys; sys.path[:0] = eval(sys.argv[1]); sys.modules['packaging'] = None\n"
        "from sekisho.ops.doctor import versions; print([f.case for f in versions.check_versions([sys.argv[2]])])"
    )
    command = [sys.executable, "-c", script, repr(sys.path), str(site.folder)]
    environment = os.environ | {"PATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == repr(["versions.not_compared", "versions.numpy"])


def test_which_cuda_a_torch_is_built_for() -> None:
    """From its local version, else from the CUDA packages it pins, in the spellings of the last years."""

    def cuda(version: str, *requires: str) -> tuple[int, int] | None:
        return torch_cuda(Package("torch", version, requires, "", ""))

    assert cuda("2.1.0+cu118") == (11, 8)
    assert cuda("2.13.0+cu130") == (13, 0)
    assert cuda("2.9.0", *TORCH_29) == (12, 8)
    assert cuda("2.11.0", *TORCH_211) == (13, 0)
    assert cuda("2.9.0", "nvidia-cuda-runtime==13.0.96") == (13, 0)
    assert cuda("2.13.0+cpu") is None
    assert cuda("2.8.0+rocm6.4") is None
    assert cuda("2.8.0") is None


@given(st.text(max_size=20), st.lists(st.text(max_size=30), max_size=3))
def test_strange_metadata_is_no_crash(version: str, requires: list[str]) -> None:
    """Whatever a package says of itself, there is an answer."""
    torch_cuda(Package("torch", version, tuple(requires), "", ""))
    versions.check_torch({"torch": Package("torch", version, tuple(requires), "", "")}, None, ())
