"""How long work tells how far it is."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""`(what, done, total)`. Called often: it must be cheap, and must not raise."""


def silent(what: str, done: int, total: int) -> None:
    """Tells nobody."""
