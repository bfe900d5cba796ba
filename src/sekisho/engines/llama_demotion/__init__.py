"""llama.cpp that reads prompts at 16 bits, which is fast, and keeps them at 8 or 4, which is small.

A worker with the option runs two of llama.cpp's servers. The *keeper* has the slots and the KV types of the settings
and makes all answers; the *reader* has one slot at 16 bits. A front on the worker's own port passes everything to the
keeper. Where a long prompt comes that no slot holds, the reader reads it, its slot is stored anew with fewer bits and
restored in the keeper, which then goes on from there.
"""

from typing import Final

from sekisho.engines.config import KvType, ModelConfig

OPTION: Final = "demote_after_prefill"
TYPES: Final[tuple[KvType, ...]] = ("f16", "q8_0", "q4_0")
AT_16_BITS: Final = "keys and values are at 16 bits already"


def asked(config: ModelConfig) -> bool:
    """Whether the settings have it on."""
    return bool(config.options.get(OPTION, False))


def why_not(config: ModelConfig) -> str | None:
    """Why these settings cannot have it; None where they can."""
    kinds = (config.kv_type_k, config.kv_type_v)
    other = sorted({kind for kind in kinds if kind not in TYPES})
    if other:
        return f"stores prompts at {', '.join(TYPES)} only, not at {', '.join(other)}"
    if kinds == ("f16", "f16"):
        return AT_16_BITS
    if config.embeddings:
        return "does not go together with embeddings, which keep no prompt"
    if config.mmproj is not None:
        return "does not go together with mmproj: images are not read by their tokens"
    return None
