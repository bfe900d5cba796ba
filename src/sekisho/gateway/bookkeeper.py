"""Keeps the book open: a disk that is full at the start, or a book that another process still holds, is tried again."""

import asyncio
import logging
from pathlib import Path

from sekisho.audit.book import Book
from sekisho.audit.config import AuditConfig
from sekisho.core.errors import BookUnavailable

log = logging.getLogger("sekisho.gateway.book")

_RETRY_S = 2.0


class Bookkeeper:
    """`book` raises BookUnavailable while there is none, so that no turn passes unrecorded."""

    def __init__(self, folder: Path, secrets: Path, config: AuditConfig) -> None:
        self._folder = folder
        self._secrets = secrets
        self._config = config
        self._book: Book | None = None
        self._why = "the book is being opened"

    def book(self) -> Book:
        if self._book is None:
            raise BookUnavailable(f"The book cannot be written ({self._why}).", retry_after_s=_RETRY_S)
        return self._book

    @property
    def is_open(self) -> bool:
        return self._book is not None

    async def open(self) -> None:
        """One try. Says in the log why it failed."""
        try:
            self._book = await asyncio.to_thread(Book.open, self._folder, self._secrets, self._config)
        except BookUnavailable as error:
            if error.message != self._why:
                log.error("the book cannot be opened, so nothing is answered: %s (%s)", error.message, error.id)
            self._why = error.message

    async def watch(self) -> None:
        """Tries until the book is open."""
        while self._book is None:
            await asyncio.sleep(_RETRY_S)
            await self.open()
            if self._book is not None:
                log.info("the book is open now")

    async def close(self) -> None:
        book, self._book = self._book, None
        if book is not None:
            await asyncio.to_thread(book.close)
