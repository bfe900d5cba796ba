"""How a text is cut into the stretches on which perplexity is measured: the same for every engine, or figures of two
engines, or of one under two policies, would be figures of two texts."""

from collections.abc import Sequence


def cut(tokens: Sequence[int], opening: Sequence[int], length: int, only: int | None = None) -> list[list[int]]:
    """Stretches of `length` tokens, the model's `opening` tokens at the head of each. What is left over at the end is a
    stretch of its own from half the length on, or where it is all there is. `only` picks one of them, counted round and
    round. Raises ValueError where nothing is left to predict."""
    room = length - len(opening)
    if room < 2:
        raise ValueError(f"a stretch of {length} tokens has no room for a prediction")
    parts = [list(tokens[at : at + room]) for at in range(0, len(tokens), room)]
    if len(parts) > 1 and 2 * len(parts[-1]) < room:
        parts.pop()
    if not parts or len(opening) + len(parts[0]) < 2:
        raise ValueError("the text has no token that could be predicted")
    chosen = parts if only is None else [parts[only % len(parts)]]
    return [[*opening, *part] for part in chosen]
