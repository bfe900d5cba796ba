"""How sealed thinking opens, and whether an item is still whole."""


def unseal(sealed: str) -> str | None:
    return sealed.removeprefix("sealed:")[::-1] if sealed.startswith("sealed:") else None


def survives(given: object, kept: object) -> bool:
    """Whether everything that was given is still there; lists keep their length and order."""
    if isinstance(given, dict):
        return isinstance(kept, dict) and all(key in kept and survives(given[key], kept[key]) for key in given)
    if isinstance(given, list):
        pairs = zip(given, kept, strict=True) if isinstance(kept, list) and len(given) == len(kept) else None
        return pairs is not None and all(survives(*pair) for pair in pairs)
    return given == kept
