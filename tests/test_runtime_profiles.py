"""Runtime profiles (SPEC G2)."""

import re
from pathlib import Path

import pytest

from sekisho import serve
from sekisho.engines import builtin
from sekisho.engines.config import BUILTIN_CONTEXT, ModelConfig
from sekisho.engines.profiles import PROFILES
from sekisho.ops.home import Home
from sekisho.settings import Settings, SettingsError, load_text
from sekisho.store.config import StoreConfig

TWO = "models:\n  - {name: big, path: big.gguf}\n  - {name: own, path: own.gguf, context: 512}\n"


@pytest.mark.parametrize(
    ("profile", "context", "devices"), [("a100", 8192, "0"), ("a40x2", 4096, "0,1"), ("cpu", 4096, None)]
)
def test_a_profile_fills_what_a_model_leaves_open(profile: str, context: int, devices: str | None) -> None:
    """A model's own line wins; the gaps come from the profile."""
    big, own = load_text(f"profile: {profile}\n{TWO}").models
    assert (big.context, big.devices) == (context, devices)
    assert (own.context, own.devices) == (512, devices)


def test_the_environment_wins_over_the_profile_and_the_model_over_both() -> None:
    """SEKISHO_PROFILE replaces the file's profile; SEKISHO_CONTEXT and SEKISHO_DEVICES lie over it."""
    environment = {"SEKISHO_PROFILE": "a40x2", "SEKISHO_CONTEXT": "2048"}
    big, own = load_text(f"profile: a100\n{TWO}", environment=environment).models
    assert (big.context, big.devices) == (2048, "0,1")
    assert (own.context, own.devices) == (512, "0,1")
    assert load_text(TWO, environment={"SEKISHO_DEVICES": "1"}).models[0].devices == "1"


def test_the_built_in_model_keeps_its_context() -> None:
    """It was trained for it."""
    (mini,) = load_text("profile: h100\nmodels:\n  - {name: sekisho-mini, path: builtin}\n").models
    assert mini == ModelConfig(name="sekisho-mini", path="builtin")


def test_the_built_in_model_says_the_context_that_it_gets() -> None:
    """What it was made for, also where more is asked for; less is given as asked."""
    shape = builtin.card()["shape"]
    assert isinstance(shape, dict)
    assert shape["positions"] == BUILTIN_CONTEXT
    line = "models:\n  - {name: m, path: builtin, context: %d}\n"
    assert load_text("").models[0].context == BUILTIN_CONTEXT
    assert load_text(line % 4096).models[0].context == BUILTIN_CONTEXT
    assert load_text(line % 512).models[0].context == 512


@pytest.mark.parametrize("environment", [{"SEKISHO_PROFILE": "tpu"}, {"SEKISHO_CONTEXT": "many"}])
def test_a_wrong_profile_is_an_error(environment: dict[str, str]) -> None:
    """It is told with the valid names, and never passed over."""
    with pytest.raises(SettingsError):
        load_text(TWO, environment=environment)
    with pytest.raises(SettingsError, match="a40x2"):
        load_text("profile: tpu\n")


def test_the_docs_have_the_table_as_it_is() -> None:
    """Each row of docs/configuration.md says what the code says."""
    text = (Path(__file__).parent.parent / "docs" / "configuration.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([a-z0-9]+)` (\| \d+ \| [\d,]* ?\| -?\d+ \| \d+ \|)$", text, re.MULTILINE))
    for name, it in PROFILES.items():
        assert rows[name].split("|")[1:-1] == [
            f" {it.context} ",
            f" {it.devices} " if it.devices else " ",
            f" {it.gpu_layers} ",
            f" {it.slots} ",
        ]


def test_a_password_in_the_database_address_is_not_written_to_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway's process reads DATABASE_URL from its environment; the plan on disk is without it."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://sekisho:hunter2@db/sekisho")
    settings = Settings(store=StoreConfig(url="postgresql://sekisho:hunter2@db/sekisho"))
    plan = serve.make_plan(Home(tmp_path), settings)
    assert "hunter2" not in repr(plan)
    assert serve.database_url(Home(tmp_path), plan.settings).endswith("hunter2@db/sekisho")
