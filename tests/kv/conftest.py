"""Tiny models, and one thread for them. Torch is asked for only where it is used."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the shadow and the tiny models lie beside the tests


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tiny matrices are not worth more, and other tests run beside."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def llama() -> Any:
    from tiny_models import tiny_llama

    return tiny_llama()


@pytest.fixture(scope="module")
def mistral() -> Any:
    from tiny_models import tiny_mistral

    return tiny_mistral()
