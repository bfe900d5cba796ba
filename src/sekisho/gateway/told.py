"""What a caller reads in place of an answer: refused, waiting for a person, ruled out, in Japanese and English."""

from sekisho.core.events import Batch, Finished, RefusalDelta, TextDelta, Usage
from sekisho.core.verdict import Verdict

_REFUSED = (
    "This request was refused. {why} Reference: {id}",
    "このリクエストはお断りしました。{why} 参照番号: {id}",
)
_STOPPED = (
    "\n\n[The answer was stopped here. {why} Reference: {id}]",
    "\n\n[回答はここで止められました。{why} 参照番号: {id}]",
)
_TICKET = (
    "This request waits for a person. {why} Ticket: {ticket}. Ask the same question again once it has been approved.",
    "このリクエストは担当者の判断待ちです。{why} 受付番号: {ticket}。"
    "承認された後に、同じ内容をもう一度送ってください。",
)
_DENIED = (
    "A person looked at this request and did not approve it. {reason}Ticket: {ticket}",
    "担当者が確認し、このリクエストは承認されませんでした。{reason}受付番号: {ticket}",
)
_EXPIRED = (
    "Nobody decided about this request in time, so it was refused. Ticket: {ticket}",
    "時間内に担当者の判断がなかったため、このリクエストはお断りしました。受付番号: {ticket}",
)


def refused(verdict: Verdict, reference: str) -> str:
    return _REFUSED[_japanese(verdict)].format(why=verdict.rationale, id=reference)


def stopped(verdict: Verdict, reference: str) -> str:
    """The end of an answer that was stopped in its middle."""
    return _STOPPED[_japanese(verdict)].format(why=verdict.rationale, id=reference)


def waiting(verdict: Verdict, ticket: str) -> str:
    return _TICKET[_japanese(verdict)].format(why=verdict.rationale, ticket=ticket)


def denied(verdict: Verdict, ticket: str, reason: str | None) -> str:
    return _DENIED[_japanese(verdict)].format(reason=f"{reason.strip()} " if reason else "", ticket=ticket)


def expired(verdict: Verdict, ticket: str) -> str:
    return _EXPIRED[_japanese(verdict)].format(ticket=ticket)


def refusal(text: str, choices: int = 1) -> Batch:
    """A whole answer that is a refusal. No engine was asked, so it costs nothing."""
    return [
        *(RefusalDelta(text, choice) for choice in range(choices)),
        Usage(0, 0),
        *(Finished("content_filter", choice) for choice in range(choices)),
    ]


def answer(text: str, choices: int = 1) -> Batch:
    """A whole answer that a person wrote."""
    return [
        *(TextDelta(text, choice) for choice in range(choices)),
        Usage(0, 0),
        *(Finished("stop", choice) for choice in range(choices)),
    ]


def _japanese(verdict: Verdict) -> int:
    return int(verdict.language in ("ja", "mixed"))
