"""The built-in model as settings of llama.cpp, and what its cache takes."""

from sekisho.control.policy import KvSection, Policy
from sekisho.engines.config import ModelConfig

CONFIG = ModelConfig("m", path="builtin", context=1024, slots=2, threads=1)
F16 = Policy(KvSection(mode="disabled"))
TOKEN_BYTES = 6 * 192 * 2 * 2  # layers, values of a key or value in each, both, 16 bits
