"""The client's clock, which runs fast where nothing is left to happen but the end of its patience."""

from time import perf_counter

TIMES = 100.0


class HurriedClock:
    """`time.perf_counter`, but from `hurry` to `calm` a hundred times as fast, so that a client may have limits that no
    busy machine meets by itself and yet come to them at once. Never goes back."""

    def __init__(self) -> None:
        self._real_s = self._told_s = perf_counter()
        self._rate = 1.0

    def __call__(self) -> float:
        return self._told_s + (perf_counter() - self._real_s) * self._rate

    def hurry(self) -> None:
        self._turn(TIMES)

    def calm(self) -> None:
        self._turn(1.0)

    def _turn(self, rate: float) -> None:
        now_s = perf_counter()
        self._told_s += (now_s - self._real_s) * self._rate
        self._real_s, self._rate = now_s, rate
