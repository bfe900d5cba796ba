"""The page behind a link. Opening it decides nothing and shows nothing of the case: mail scanners open links, too.

The token stands in the link's fragment, which browsers send to nobody: no access log, proxy or Referer has it. The
page takes it from there into a form, and only the form's POST shows the case and decides.
"""

import base64
import hashlib
from html import escape
from typing import Literal, cast, get_args
from urllib.parse import parse_qs

import msgspec

from sekisho.core.errors import InvalidRequest, SekishoError
from sekisho.guard.desk import Desk
from sekisho.guard.desk_records import Action
from sekisho.store.escalations import Ticket

FormAction = Literal["show", "approve", "answer", "deny"]

_SCRIPT = (
    "const field=document.getElementById('token');"
    "if(field&&location.hash.length>1){field.value=location.hash.slice(1);"
    "history.replaceState(null,'',location.pathname);}"
)
_STYLE = (
    "body{font-family:system-ui,sans-serif;max-width:42rem;margin:2rem auto;padding:0 1rem;line-height:1.6}"
    "blockquote{white-space:pre-wrap;overflow-wrap:anywhere;background:#f3f3f3;margin:1rem 0;padding:.8rem}"
    "dt{color:#555;font-size:.85rem}dd{margin:0 0 .5rem}"
    "input,textarea{width:100%;box-sizing:border-box;font:inherit;padding:.4rem}"
    "button{font:inherit;padding:.5rem 1.2rem;margin:.5rem .5rem .5rem 0}"
)


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


HEADERS: dict[str, str] = {
    "content-type": "text/html; charset=utf-8",
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "x-robots-tag": "noindex, nofollow",
    "content-security-policy": "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hash(_SCRIPT)}",
            f"style-src {_hash(_STYLE)}",
            "form-action 'self'",
            "base-uri 'none'",
            "frame-ancestors 'none'",
        )
    ),
}


class LinkForm(msgspec.Struct, frozen=True):
    """What the form sends."""

    token: str
    action: FormAction
    answer: str | None = None
    reason: str | None = None


def entry_page() -> bytes:
    """The answer to GET: the same for every address, whether there is such a ticket or not."""
    return _page(
        "<p>この要求は人の判断を待っています。内容を表示するにはボタンを押してください。<br>"
        "A request waits for a human. Press the button to see it.</p>"
        '<form method="post"><label>リンクのコード / Code of your link<br>'
        '<input id="token" name="token" type="password" autocomplete="off" required></label>'
        '<button name="action" value="show">表示する / Show</button></form>'
    )


async def answer(desk: Desk, ticket_id: str, body: bytes) -> tuple[int, bytes]:
    """The answer to POST: HTTP status and page. Errors of the request are pages, too; others are raised."""
    try:
        form = parse(body)
        if form.action == "show":
            ticket, approver = await desk.peek(form.token, ticket_id)
            return 200, ticket_page(ticket, approver, form.token)
        action: Action = form.action
        return 200, done_page(await desk.redeem(form.token, action, form.answer, form.reason, ticket_id))
    except SekishoError as error:
        return error.status, error_page(error)


def parse(body: bytes) -> LinkForm:
    """Reads `application/x-www-form-urlencoded`. Raises InvalidRequest."""
    try:
        fields = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=8, errors="strict")
    except ValueError as error:
        raise InvalidRequest("The form cannot be read.") from error
    one = {name: values[0] for name, values in fields.items() if len(values) == 1}
    action, token = one.get("action", ""), one.get("token", "").strip()
    if not token or action not in get_args(FormAction):
        raise InvalidRequest("The form needs a token and an action.", param="token" if not token else "action")
    wanted = one.get("answer", "").strip() if action == "answer" else ""
    return LinkForm(token, cast(FormAction, action), wanted or None, one.get("reason", "").strip() or None)


def ticket_page(ticket: Ticket, approver: str, token: str) -> bytes:
    """The case, and the form that decides it."""
    facts = (
        ("番号 / Ticket", ticket.id),
        ("分類 / Category", ticket.category),
        ("重大度 / Severity", ticket.severity),
        ("理由 / Why", ticket.rationale),
        ("あなた / You", approver),
    )
    rows = "".join(f"<dt>{escape(label)}</dt><dd>{escape(value)}</dd>" for label, value in facts)
    return _page(
        f"<dl>{rows}</dl><blockquote>{escape(ticket.question)}</blockquote>"
        f'<form method="post"><input type="hidden" name="token" value="{escape(token, quote=True)}">'
        "<p><label>回答(モデルの代わりに返します) / Answer, given in place of the model<br>"
        '<textarea name="answer" rows="5" maxlength="32000"></textarea></label></p>'
        '<p><label>理由(任意) / Reason, optional<br><input name="reason" maxlength="2000"></label></p>'
        '<button name="action" value="approve">承認 / Approve</button>'
        '<button name="action" value="answer">回答を送る / Send answer</button>'
        '<button name="action" value="deny">却下 / Deny</button></form>'
    )


def done_page(ticket: Ticket) -> bytes:
    words = {
        "approved": "承認しました / Approved",
        "answered": "回答しました / Answered",
        "denied": "却下しました / Denied",
    }
    return _page(f"<p>{words[ticket.state]}: {escape(ticket.id)}</p>")


def error_page(error: SekishoError) -> bytes:
    return _page(
        f"<p>受け付けられませんでした。 / This was not accepted.</p><p>{escape(error.message)} ({error.id})</p>"
    )


def _page(content: str) -> bytes:
    return (
        '<!doctype html><html lang="ja"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>Sekisho</title>'
        f"<style>{_STYLE}</style></head><body><h1>Sekisho</h1>{content}<script>{_SCRIPT}</script></body></html>"
    ).encode()
