"""Another process that writes a policy book: `FOLDER changes` until it is killed, or `FOLDER full` on a full disk."""

import sys
from pathlib import Path

from sekisho.control.policy_book import BookUnwritable, PolicyBook
from sekisho.core.clock import SystemClock


def write_for_ever(book: PolicyBook) -> None:
    """Says each number once it is acknowledged."""
    while True:
        number = book.version + 1
        window = 16 + number % 400
        version = book.change(
            {"kv": {"recent_window": window}}, by="child", why="日本語 " * 50, model=("a", None)[number % 2]
        )
        print(version.number, flush=True)


def fill_the_disk(book: PolicyBook, path: Path) -> None:
    """The kernel lets the file grow by 40 bytes, less than a line, and then by as much as it wants."""
    import resource
    import signal

    book.change({"kv": {"recent_window": 100}}, by="child", why="there is room")
    before = path.read_bytes()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 40, hard))
    try:
        book.change({"kv": {"recent_window": 200}}, by="child", why="there is none")
    except BookUnwritable as error:
        print(f"refused: {error}", book.version, book.current().kv.recent_window, path.read_bytes() == before)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    book.change({"kv": {"recent_window": 300}}, by="child", why="room again")
    print(book.version, book.current().kv.recent_window)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    with PolicyBook(folder, SystemClock()) as opened:
        if sys.argv[2] == "changes":
            write_for_ever(opened)
        else:
            fill_the_disk(opened, folder / "policy.jsonl")
