"""Fixtures: servers that are surely gone after the test."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # so that the tests find the harness beside them

from e2e_harness import Launch, Sekisho, load_beside

from sekisho.engines import builtin


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """`launch(models, port=…, gateway=…)` makes a home with these settings; nothing runs in it yet."""
    made: list[Sekisho] = []

    def make(*arguments: Any, **options: Any) -> Sekisho:
        made.append(Sekisho(tmp_path / f"home{len(made)}", *arguments, **options))
        return made[-1]

    yield make
    for sekisho in made:
        sekisho.down()


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The settings' `path` of a model that every machine can run: the built-in one, else one with random weights."""
    if builtin.path().is_file():
        return "builtin"
    module = load_beside("engines")
    return str(module.write_tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf"))


_BROWSER = load_beside("console")
chromium, open_page = _BROWSER.chromium, _BROWSER.open_page
