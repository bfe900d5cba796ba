"""Why a gate failed and what to do next, for every kind of failure. Pairs are (English, Japanese)."""

import msgspec

from sekisho.evaluate.client.faults import MEANINGS, Fault, Meaning

Words = tuple[str, str]

LACKING = frozenset({400, 404, 405, 501})  # what servers without an API say when it is asked
NOT_THE_API = frozenset({"model_not_found", "context_length_exceeded", "previous_response_not_found"})
"""Codes that come from a server which has the API."""

_IN_FRONT: Words = (
    "Put Sekisho in front of this engine: it makes /v1/responses and its state out of chat completions.",
    "このエンジンの前段に Sekisho を置きます。chat completions から /v1/responses と会話状態を作ります。",
)
_HISTORY: Words = (
    "Send the whole history with each turn (chat completions), or put Sekisho in front, which keeps the state.",
    "毎回履歴を送る（chat completions）か、状態を保持する Sekisho を前段に置きます。",
)

OWN: dict[str, Meaning] = {
    "lacks_api": Meaning(("this server does not offer /v1/responses", "/v1/responses に対応していません"), _IN_FRONT),
    "model_missing": Meaning(
        ("the model is not in the server's list", "モデルがサーバーの一覧にありません"),
        (
            "Name one of the list (--model), or load the model.",
            "一覧にある名前を指定する（--model）か、モデルをロードします。",
        ),
    ),
    "let_in": Meaning(
        ("a request without a valid key was answered", "有効なキーのない要求に応答が返りました"),
        (
            "Do not open this address to anybody. Set a key on the server, or put Sekisho in front of it.",
            "このアドレスを公開しないでください。サーバーにキーを設定するか、前段に Sekisho を置きます。",
        ),
    ),
    "not_turned_away": Meaning(
        (
            "a request without a valid key failed, but not with 401 or 403",
            "有効なキーのない要求が、401/403 以外で失敗しました",
        ),
        (
            "Nobody can tell from this whether keys are checked. Mend the server's or proxy's key check.",
            "キーを検査しているか判断できません。サーバーまたはプロキシの認証設定を直します。",
        ),
    ),
    "no_key_to_check": Meaning(
        ("not tried: this engine is asked without a key", "未実施: このエンジンにはキーなしで接続します"),
        (
            "Keep the engine on loopback; the address in front of it checks the keys.",
            "エンジンはループバックのままにします。キーは前段のアドレスで検査します。",
        ),
    ),
    "state_lost": Meaning(
        (
            "the second turn, which names the first one's id, was not answered",
            "1 回目の ID を指定した 2 回目の要求に、応答が返りませんでした",
        ),
        _HISTORY,
    ),
    "state_ignored": Meaning(
        (
            "an id that never existed is taken as well: previous_response_id is ignored",
            "存在しない ID も受け付けます。previous_response_id は無視されています",
        ),
        _HISTORY,
    ),
    "certificate": Meaning(
        ("this machine does not trust the server's certificate", "サーバーの証明書を信頼できません"),
        (
            "Give the proxy a certificate that is trusted here, or name its authority in SSL_CERT_FILE.",
            "信頼される証明書をプロキシに設定するか、認証局を SSL_CERT_FILE で指定します。",
        ),
    ),
}
"""What only a gate can say; the rest is `faults.MEANINGS`."""


class Failure(msgspec.Struct, frozen=True):
    """`kind` is a `FaultKind` or one of `OWN`."""

    kind: str
    words: str = ""

    @property
    def meaning(self) -> Meaning:
        own = OWN.get(self.kind)
        return own if own is not None else MEANINGS[self.kind]  # type: ignore[index]  # one of the two has it


def failure_of(fault: Fault, *, status: int | None, code: str | None, asked_responses: bool) -> Failure:
    """The failure that a failing fault is. `code` is the error's own, where the server told one."""
    if asked_responses and status in LACKING and code not in NOT_THE_API:
        return Failure("lacks_api", fault.detail)
    if fault.kind == "not_connected" and "certificate" in fault.detail.lower():
        return Failure("certificate", fault.detail)
    return Failure(fault.kind, fault.detail)
