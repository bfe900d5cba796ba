"""`sekisho escalation list|show|approve|answer|deny`: straight on the store, with and without a running server."""

import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from sekisho.cli import quantities
from sekisho.cli.book import person
from sekisho.cli.failure import FAILED, USAGE, CommandFailed
from sekisho.cli.keys import with_store
from sekisho.cli.options import HomeOption, JsonOption, at_home, example, settings_of
from sekisho.cli.output import Output, plain

if TYPE_CHECKING:
    from sekisho.guard.desk import Desk
    from sekisho.guard.desk_config import EscalationConfig
    from sekisho.guard.desk_records import Action
    from sekisho.ops.home import Home
    from sekisho.settings import Settings
    from sekisho.store import Store, Ticket

T = TypeVar("T")

STYLES = {"pending": "yellow", "approved": "green", "answered": "green", "denied": "red", "expired": "red"}

app = typer.Typer(
    help="Requests that wait for a person: look at them, decide.",
    epilog=example("sekisho escalation list --state pending", ja="人の判断を待つ要求を処理します。"),
    no_args_is_help=True,
)

TicketArgument = Annotated[str, typer.Argument(metavar="ID", help="The ticket's id (esc_…).")]
AsOption = Annotated[
    str | None,
    typer.Option("--as", metavar="NAME", help="The approver you are; default: your user name, else `operator`."),
]


@app.command("list", epilog=example("sekisho escalation list --state pending", ja="人の判断を待つ要求の一覧です。"))
def listing(
    state: Annotated[
        str | None, typer.Option("--state", help="pending, approved, answered, denied, expired or abandoned.")
    ] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many, the newest.")] = 50,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """List tickets, the newest first."""
    from sekisho.store import TICKET_STATES

    out, place = Output(as_json=as_json), at_home(home)
    if state is not None and state not in TICKET_STATES:
        hint = f"states are {', '.join(TICKET_STATES)}"
        raise CommandFailed(f"--state: {state!r} is none", hint=hint, exit_code=USAGE)
    tickets = with_desk(place, settings_of(place), lambda desk: desk.list(state, limit=lines))
    out.json([shown(ticket) for ticket in tickets])
    if not tickets:
        out.say("ticket_none")
        return
    rows = [
        (ticket.id, ticket.state, ticket.category, ticket.channel, ticket.key_name, _when(ticket), _line(ticket))
        for ticket in tickets
    ]
    out.table(out.columns("id", "state", "category", "channel", "key", "time", "question"), rows)


@app.command("show", epilog=example("sekisho escalation show esc_…", ja="要求の内容を表示します。"))
def show(ticket: TicketArgument, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show what was asked, why a person must look, and what was decided."""
    out, place = Output(as_json=as_json), at_home(home)
    found = with_desk(place, settings_of(place), lambda desk: desk.get(ticket))
    out.json(shown(found))
    _show(out, found)


@app.command("approve", epilog=example("sekisho escalation approve esc_… --as hanako", ja="要求を通します。"))
def approve(
    ticket: TicketArgument, approver: AsOption = None, home: HomeOption = None, as_json: JsonOption = False
) -> None:
    """Let the request go on to the model."""
    _decide(Output(as_json=as_json), at_home(home), ticket, approver, "approve")


@app.command(
    "answer", epilog=example('sekisho escalation answer esc_… "See a doctor today."', ja="モデルの代わりに答えます。")
)
def answer(
    ticket: TicketArgument,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The answer; - reads standard input.")],
    approver: AsOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer in place of the model."""
    import sys

    _decide(
        Output(as_json=as_json), at_home(home), ticket, approver, "answer", sys.stdin.read() if text == "-" else text
    )


@app.command("deny", epilog=example('sekisho escalation deny esc_… --reason "not here"', ja="要求を断ります。"))
def deny(
    ticket: TicketArgument,
    reason: Annotated[str | None, typer.Option("--reason", help="Why; the caller is told.")] = None,
    approver: AsOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Refuse the request."""
    _decide(Output(as_json=as_json), at_home(home), ticket, approver, "deny", reason)


def _decide(
    out: Output, place: "Home", ticket: str, approver: str | None, action: "Action", words: str | None = None
) -> None:
    from sekisho.core.errors import AlreadyDecided, Forbidden, TicketExpired

    settings = settings_of(place)
    who = _approver(settings.guard.escalation, approver)
    answer, reason = (words, None) if action == "answer" else (None, words)
    try:
        decided = with_desk(place, settings, lambda desk: desk.decide(ticket, who, action, answer, reason))
    except (AlreadyDecided, Forbidden, TicketExpired) as error:
        raise CommandFailed(error.message, exit_code=FAILED, details={"code": error.error_code}) from error
    out.json(shown(decided))
    out.say(f"ticket_{decided.state}", id=decided.id, by=who)


def _approver(config: "EscalationConfig", name: str | None) -> str:
    """Who decides. Raises CommandFailed for a name that is in no setting."""
    from sekisho.guard.desk_config import OPERATOR

    if name is None:
        own = person()
        if own in config.approvers:
            return own
        if config.operator:
            return OPERATOR
        name = own
    if name in config.approvers or name == OPERATOR:
        return name
    known = ", ".join(config.approvers) or "none is set"
    raise CommandFailed(f"{name!r} is no approver", hint=f"guard.escalation.approvers: {known}", exit_code=USAGE)


def with_desk(place: "Home", settings: "Settings", work: Callable[["Desk"], Awaitable[T]]) -> T:
    """Opens the store that the server uses and does the work at a desk without bells. What is decided here is told to
    the book by the running server, or by the next one."""
    from sekisho.core.clock import SystemClock
    from sekisho.gateway.seal import Sealer, load_or_create_key
    from sekisho.guard.desk import Desk
    from sekisho.guard.quiet import QuietNotifier

    async def run(store: "Store") -> T:
        config = settings.guard.escalation
        sealer = Sealer(load_or_create_key(place.secrets / "seal.key"))
        desk = Desk(lambda: store, config, QuietNotifier(), SystemClock(), sealer=sealer)
        try:
            return await work(desk)
        finally:
            await desk.close()

    return with_store(place, settings, run)


def shown(ticket: "Ticket") -> dict[str, Any]:
    """The ticket as JSON types, without the book-keeping."""
    values: dict[str, Any] = plain(ticket)
    for field in ("version", "told_version"):
        del values[field]
    return values


def _when(ticket: "Ticket") -> str | None:
    if ticket.state == "pending":
        return f"{max(0, round(ticket.expires_at - time.time()))} s"
    return quantities.moment(ticket.decided_at)


def _line(ticket: "Ticket") -> str:
    text = " ".join(ticket.question.split())
    return text if len(text) <= 60 else f"{text[:59]}…"


def _show(out: Output, ticket: "Ticket") -> None:
    out.line(f"{ticket.id}  {ticket.state}", style=STYLES.get(ticket.state))
    facts = (
        ("category", f"{ticket.category} ({ticket.channel}), {ticket.severity}"),
        ("key", ticket.key_name if ticket.user is None else f"{ticket.key_name} ({ticket.user})"),
        ("model", ticket.model),
        ("time", quantities.moment(ticket.created_at)),
        ("why", ticket.rationale),
        ("expires", quantities.moment(ticket.expires_at) if ticket.state == "pending" else None),
        ("decided_by", ticket.decided_by),
        ("reason", ticket.reason),
    )
    for name, value in facts:
        if value:
            out.line(f"  {out.text(name)}: {value}")
    out.line()
    out.line(ticket.question)
    if ticket.answer:
        out.line()
        out.line(out.text("ticket_answer"), style="bold")
        out.line(ticket.answer)
