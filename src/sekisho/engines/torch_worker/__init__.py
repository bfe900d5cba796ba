"""The child process that runs a Hugging Face model with the tiered KV cache:
`python -m sekisho.engines.torch_worker --config JSON --port N`.

    server    HTTP on 127.0.0.1, in the interface of OpenAI -> requests, prompts: a body becomes token ids and settings
    runner    the one thread that runs the model: admits, reads prompts in portions, one token for all that run
    batch     the sequences that run, in one cache; sequence: one of them, from its prompt to its last piece of text
    admission what a sequence may come to in bytes, so that memory never runs out

Only this process imports torch. This module is light: whoever starts a worker imports it.
"""

import sys

import msgspec

from sekisho.engines.config import ModelConfig


def argv(config: ModelConfig, port: int) -> tuple[str, ...]:
    """The command line of a worker."""
    body = msgspec.json.encode(config).decode()
    return (sys.executable, "-m", "sekisho.engines.torch_worker", "--config", body, "--port", str(port))
