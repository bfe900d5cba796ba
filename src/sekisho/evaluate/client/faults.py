"""What can be wrong with an answer, what it means, and what to do next.

A fault that `fails` makes the request no success. The others spoil only the figures that rest on what is wrong.
"""

from collections.abc import Iterable
from typing import Literal

import msgspec

FaultKind = Literal[
    "not_connected", "no_answer", "silent", "trickled", "cut", "not_http", "too_large",
    "redirect", "unauthorized", "forbidden", "not_found", "rate_limited", "client_error", "server_error",
    "empty_body", "bad_json", "bad_utf8", "not_a_stream", "error_in_2xx", "error_in_stream", "empty_answer", "refused",
    "wrong_model", "no_end", "done_missing", "after_the_end", "bad_order", "no_id", "only_reasoning", "usage_missing",
    "usage_wrong",
]  # fmt: skip


class Fault(msgspec.Struct, frozen=True):
    """`detail` is the server's own words, cut, or what was found against what was expected."""

    kind: FaultKind
    detail: str = ""

    @property
    def fails(self) -> bool:
        return self.kind not in ("only_reasoning", "usage_missing", "usage_wrong")


class Meaning(msgspec.Struct, frozen=True):
    """Pairs are (English, Japanese)."""

    what: tuple[str, str]
    next: tuple[str, str]


_RESTART = (
    "Restart the engine and try again; read its log (sekisho status names it).",
    "エンジンを再起動してもう一度試し、ログを確認します（場所は sekisho status に表示）。",
)
_PROXY = (
    "Look at what stands between: a proxy's time limit or buffering, and the engine's log.",
    "途中のプロキシの時間制限とバッファリング、エンジンのログを確認します。",
)
_PROTOCOL = (
    "This server does not keep the protocol. Put Sekisho in front of it, or use another engine version.",
    "このサーバーはプロトコルを守っていません。前段に Sekisho を置くか、エンジンの版を変えます。",
)
_KEY = (
    "Check the key (sekisho key list), its scopes and models, and the allowed networks.",
    "キー（sekisho key list）、そのスコープとモデル、許可されたネットワークを確認します。",
)

MEANINGS: dict[FaultKind, Meaning] = {
    "not_connected": Meaning(
        ("nobody listens at this address", "このアドレスでは誰も待ち受けていません"),
        (
            "Start the server (sekisho up), or correct the address.",
            "サーバーを起動する（sekisho up）か、アドレスを直します。",
        ),
    ),
    "no_answer": Meaning(("no byte came in time", "時間内に 1 バイトも届きませんでした"), _RESTART),
    "silent": Meaning(("the answer stopped in the middle", "応答が途中で止まりました"), _PROXY),
    "trickled": Meaning(
        ("bytes kept coming, too slowly to end in time", "届き続けましたが、遅すぎて時間内に終わりませんでした"), _PROXY
    ),
    "cut": Meaning(("the connection ended before the answer did", "応答の途中で接続が切れました"), _PROXY),
    "not_http": Meaning(
        ("what answers does not speak HTTP", "応答が HTTP ではありません"),
        ("Correct the address: port, and http or https.", "アドレス（ポート、http/https）を直します。"),
    ),
    "too_large": Meaning(("the answer is larger than any real one", "応答が大きすぎます"), _PROTOCOL),
    "redirect": Meaning(
        ("the address points elsewhere", "別のアドレスへ転送されました"),
        ("Use the address it points to; keys are not sent on.", "転送先を直接指定します。キーは転送先へ送りません。"),
    ),
    "unauthorized": Meaning(("401: the key is missing or unknown", "401: キーがないか、無効です"), _KEY),
    "forbidden": Meaning(("403: this key may not do that", "403: このキーには許可されていません"), _KEY),
    "not_found": Meaning(
        ("404 or 405: there is no such route or model", "404/405: 経路またはモデルがありません"),
        (
            "Check the model's name and the address. An engine without /v1/responses needs Sekisho in front of it.",
            "モデル名とアドレスを確認します。/v1/responses のないエンジンには前段に Sekisho が必要です。",
        ),
    ),
    "rate_limited": Meaning(
        ("429: a limit or budget is reached", "429: 上限または予算に達しました"),
        ("Measure with a key without limits (sekisho key create).", "上限のないキーで測ります（sekisho key create）。"),
    ),
    "client_error": Meaning(
        ("the server refuses the request (4xx)", "サーバーが要求を拒否しました（4xx）"),
        (
            "Read the server's words; the engine may lack this API.",
            "サーバーの説明を読みます。この API に対応していない可能性があります。",
        ),
    ),
    "server_error": Meaning(("the server failed (5xx)", "サーバーで失敗しました（5xx）"), _RESTART),
    "empty_body": Meaning(
        ("success was told, and nothing came", "成功と返りましたが、本文がありません"),
        (
            "See that a model is loaded, and look at the proxy and the logs.",
            "モデルがロードされているか、プロキシとログを確認します。",
        ),
    ),
    "bad_json": Meaning(("the answer is not the JSON it should be", "応答が正しい JSON ではありません"), _PROTOCOL),
    "bad_utf8": Meaning(("the answer is not UTF-8", "応答が UTF-8 ではありません"), _PROTOCOL),
    "not_a_stream": Meaning(
        ("a stream was asked for, and none came", "ストリームを要求しましたが、ストリームではありません"), _PROXY
    ),
    "error_in_2xx": Meaning(("an error was told as a success", "エラーが成功（2xx）として返りました"), _RESTART),
    "error_in_stream": Meaning(("the stream ended with an error", "ストリームがエラーで終わりました"), _RESTART),
    "empty_answer": Meaning(
        ("the answer holds no text", "応答に文章がありません"),
        (
            "Look at the model's chat template and at the engine's log.",
            "モデルのチャットテンプレートと、エンジンのログを確認します。",
        ),
    ),
    "refused": Meaning(
        ("the guard did not let it through", "ガードが通しませんでした"),
        ("sekisho guard explain TEXT says why.", "sekisho guard explain TEXT で理由を確認します。"),
    ),
    "wrong_model": Meaning(
        ("another model answered than was asked", "要求と異なるモデルが答えました"),
        ("Check which model is loaded, and the aliases.", "ロードされているモデルと別名を確認します。"),
    ),
    "no_end": Meaning(
        ("the stream ended without its final event", "ストリームが終了イベントなしで終わりました"), _PROTOCOL
    ),
    "done_missing": Meaning(("the stream ended without [DONE]", "ストリームが [DONE] なしで終わりました"), _PROTOCOL),
    "after_the_end": Meaning(("something came after the end", "終了の後に何かが届きました"), _PROTOCOL),
    "bad_order": Meaning(
        ("events came out of order or contradict each other", "イベントの順序が誤っているか、矛盾しています"), _PROTOCOL
    ),
    "no_id": Meaning(
        ("the answer has no id, so nothing can follow it", "応答に ID がなく、続きを要求できません"), _PROTOCOL
    ),
    "only_reasoning": Meaning(
        ("the limit on tokens ended the answer while it was thinking", "思考中にトークン数の上限に達しました"),
        (
            "Allow more tokens (--max-tokens), or let the model think less: there is no answer to judge.",
            "評価する応答がありません。トークン数の上限（--max-tokens）を増やすか、思考を短くします。",
        ),
    ),
    "usage_missing": Meaning(
        ("tokens were not told", "トークン数が返りませんでした"),
        (
            "Token figures are left out. Use an engine that reports usage.",
            "トークンの値は出しません。usage を返すエンジンを使います。",
        ),
    ),
    "usage_wrong": Meaning(
        ("the told tokens do not fit the answer", "返ったトークン数が応答と合いません"),
        (
            "Token figures are left out. The count is wrong: do not bill by it.",
            "トークンの値は出しません。計数の誤りで、課金には使えません。",
        ),
    ),
}


def first_failing(faults: Iterable[Fault]) -> Fault | None:
    return next((fault for fault in faults if fault.fails), None)


def by_status(status: int) -> FaultKind | None:
    """The fault that an HTTP status is; None for 2xx."""
    if 200 <= status < 300:
        return None
    named: dict[int, FaultKind] = {
        401: "unauthorized",
        403: "forbidden",
        404: "not_found",
        405: "not_found",
        429: "rate_limited",
    }
    if status in named:
        return named[status]
    return "redirect" if 300 <= status < 400 else "client_error" if 400 <= status < 500 else "server_error"
