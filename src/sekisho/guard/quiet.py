"""The notifier of the test mode: nobody is called."""

from sekisho.store.escalations import Notice, Ticket


class QuietNotifier:
    """See `notices.Notifier`."""

    def plan(self, ticket: Ticket, now: float) -> list[Notice]:
        return []

    async def send(self, notice: Notice, ticket: Ticket, link: str | None, now: float) -> None:
        """A notice that a run without the test mode left behind waits for the next such run."""
        from sekisho.guard.notices import NoticeFailed

        raise NoticeFailed("the test mode calls nobody")

    async def close(self) -> None:
        pass
