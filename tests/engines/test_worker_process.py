"""Which port a worker is given."""

import secrets
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from sekisho.engines import worker_process


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[int]]:
    """What ports were chosen from."""
    choices: list[Sequence[int]] = []

    def choice(ports: Sequence[int]) -> int:
        choices.append(ports)
        return chosen(ports)

    chosen = secrets.choice
    monkeypatch.setattr(secrets, "choice", choice)
    return choices


def outgoing_from(path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text(text)
    monkeypatch.setattr(worker_process, "_LINUX_PORTS", path)


def test_no_outgoing_connection_is_given_a_workers_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its port lies below those, and is free."""
    outgoing_from(tmp_path / "range", "24000\t60999\n", monkeypatch)
    for _ in range(50):
        port = worker_process.free_port()
        assert 20_000 <= port < 24_000
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", port))
            listener.listen()


@pytest.mark.parametrize("text", ["", "many", "32768\t60999\n"])
def test_where_nothing_is_told_the_usual_ones_are_left_alone(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[Sequence[int]]
) -> None:
    """A system without Linux' file, or with another one there."""
    outgoing_from(tmp_path / "range", text, monkeypatch)
    worker_process.free_port()
    assert (min(asked[0]), max(asked[0])) == (20_000, 32_767)


def test_a_system_that_gives_all_ports_away_chooses_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[Sequence[int]]
) -> None:
    outgoing_from(tmp_path / "range", "1024\t65535\n", monkeypatch)
    assert worker_process.free_port() > 0
    assert asked == []


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_port_that_is_taken_is_not_given(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others are tried, and at last the system is asked."""
    tried = []
    monkeypatch.setattr(secrets, "choice", lambda _: tried.append(taken) or taken)
    port = worker_process.free_port()
    assert port not in (0, taken)
    assert len(tried) == worker_process._PORT_TRIES
