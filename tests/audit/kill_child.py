"""Appends under load and prints the number of each acknowledged record, until it is killed.

usage: kill_child.py FOLDER SECRETS SEED
"""

import asyncio
import os
import sys
from pathlib import Path

from sekisho.audit.book import Book
from sekisho.audit.config import AnchorConfig, AuditConfig
from sekisho.audit.records import VerdictRecord


async def main(folder: Path, secrets: Path, seed: str) -> None:
    config = AuditConfig(segment_mb=0.02, anchor=AnchorConfig(records=20, seconds=0.05), group_records=16)
    book = Book.open(folder, secrets, config)
    counter = iter(range(10**9))

    async def client() -> None:
        while True:
            text = f"{seed}.{next(counter)}"
            send = book.hand_over if hash(text) % 3 == 0 else book.append
            receipt = await send(VerdictRecord(request_id="r", user_id="u", input=text, decision="ALLOW"))
            os.write(1, f"{receipt.sequence} {text}\n".encode())

    os.write(1, b"ready\n")
    await asyncio.gather(*(client() for _ in range(50)))


asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
