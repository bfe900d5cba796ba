"""What loading the package costs, and what it says where its extra is not installed."""

import subprocess
import sys
import warnings

import pytest

import sekisho.kv

pytestmark = pytest.mark.kv


def ran(program: str) -> str:
    """What a program prints in a fresh interpreter that knows neither torch nor transformers."""
    blocked = "import sys; sys.modules.update(dict.fromkeys(('torch', 'transformers')))\n"
    done = subprocess.run([sys.executable, "-c", blocked + program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_policy_without_the_extra() -> None:
    """A policy is made and checked without torch."""
    assert ran("import sekisho.kv, sekisho.kv.policy as p; print(p.KVPolicy is sekisho.kv.KVPolicy)") == "True"
    assert ran("from sekisho.kv import KVPolicy; print(KVPolicy(budget=0.5).budget)") == "0.5"


def test_cache_without_the_extra() -> None:
    """A name that needs torch says which package is missing and how to get it."""
    for name in ("TieredCache", "register", "TieredRows", "kernel_for", "StorageError", "CacheStatistics"):
        said = ran(f"import sekisho.kv\ntry: sekisho.kv.{name}\nexcept ImportError as error: print(error)")
        assert said == f"sekisho.kv.{name} needs torch: pip install 'sekisho[kv]'"


def test_unknown_name() -> None:
    """A name that is not there is an AttributeError, not a failed import."""
    with pytest.raises(AttributeError, match="no attribute 'TiredCache'"):
        _ = sekisho.kv.TiredCache


def test_public_names() -> None:
    """Every public name can be had, and dir() shows it."""
    pytest.importorskip("torch", reason="needs the extra kv: pip install 'sekisho[kv]'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of packages that transformers loads where it finds them
        assert all(getattr(sekisho.kv, each) for each in sekisho.kv.__all__)
    assert set(sekisho.kv.__all__) <= {*dir(sekisho.kv)}
