"""Engines at other addresses: reachable, over TLS that holds, with a key they take, and with the model."""

import os
import ssl
import time
from pathlib import Path

import aiohttp
import msgspec

from sekisho.core.decoding import Undecodable, decoded
from sekisho.engines.config import ModelConfig
from sekisho.ops.doctor.clock import check_skew
from sekisho.ops.doctor.finding import Case, Finding, Words

TIMEOUT_S = 4.0

_WHAT: Words = ("{model}: {url}", "{model}: {url}")
_START: Words = ("start that engine, or correct `url`", "エンジンを起動するか `url` を直してください")

GOOD = Case("upstream.good", "ok", ("{model}: {url} answers", "{model}: {url} は応答しています"))
NO_KEY = Case(
    "upstream.no_key",
    "error",
    _WHAT,
    ("its key cannot be had: {why}", "API キーを取得できません: {why}"),
    ("set {variable}", "{variable} を設定してください"),
)
NOBODY = Case(
    "upstream.refused",
    "error",
    _WHAT,
    ("nothing listens there", "待ち受けているプログラムがありません"),
    _START,
)
NO_HOST = Case(
    "upstream.unknown_host",
    "error",
    _WHAT,
    ("no such host is known: {why}", "ホスト名を解決できません: {why}"),
    ("correct `url`, or the name service", "`url` か名前解決の設定を直してください"),
)
SILENT = Case(
    "upstream.silent",
    "error",
    _WHAT,
    ("no answer within {seconds:g} s", "{seconds:g} 秒以内に応答がありません"),
    (
        "see whether that engine is loading or hanging, and whether a firewall is between",
        "エンジンが読み込み中・停止していないか、途中にファイアウォールがないか確認してください",
    ),
)
NOT_HTTP = Case(
    "upstream.not_http",
    "error",
    _WHAT,
    ("what answers there does not speak HTTP: {why}", "HTTP ではない応答です: {why}"),
    (
        "if it speaks TLS, write https:// in `url`; else correct the port",
        "TLS なら `url` を https:// に。そうでなければポートを直してください",
    ),
)
TLS_SELF_SIGNED = Case(
    "upstream.tls_untrusted",
    "error",
    _WHAT,
    (
        "its certificate is signed by nobody this machine trusts: {why}",
        "証明書の発行者をこのマシンが信頼していません: {why}",
    ),
    (
        "export SSL_CERT_FILE=/path/to/that-authority.pem before sekisho up, or give it a certificate of a known one",
        "sekisho up の前に export SSL_CERT_FILE=/その認証局の.pem、または公的な証明書に替えてください",
    ),
)
TLS_EXPIRED = Case(
    "upstream.tls_expired",
    "error",
    _WHAT,
    ("its certificate has expired, or is not valid yet: {why}", "証明書の有効期間外です: {why}"),
    (
        "renew it there; if it is in order, set this machine's clock",
        "証明書を更新してください。正しいなら、このマシンの時計を合わせてください",
    ),
)
TLS_NAME = Case(
    "upstream.tls_name",
    "error",
    _WHAT,
    ("its certificate is for another name: {why}", "証明書のホスト名が一致しません: {why}"),
    ("write the name of the certificate in `url`", "`url` を証明書の名前に合わせてください"),
)
TLS_NONE = Case(
    "upstream.tls_none",
    "error",
    _WHAT,
    ("TLS cannot be agreed on: {why}", "TLS の接続に失敗しました: {why}"),
    ("if it speaks plain HTTP, write http:// in `url`", "TLS でないなら `url` を http:// にしてください"),
)
UNREACHABLE = Case("upstream.unreachable", "error", _WHAT, ("{why}", "{why}"), _START)
KEY_REFUSED = Case(
    "upstream.key_refused",
    "error",
    _WHAT,
    ("answers {status}", "応答は {status} です"),
    ("correct `api_key_env` or `api_key_file`", "`api_key_env` か `api_key_file` を直してください"),
)
WRONG_PATH = Case(
    "upstream.wrong_path",
    "error",
    _WHAT,
    ("answers {status} for /models", "/models への応答は {status} です"),
    ("correct `url`: it ends in /v1", "`url` を直してください（/v1 で終わります）"),
)
NO_LIST = Case(
    "upstream.no_list",
    "warning",
    _WHAT,
    ("answers, but with no list of models", "応答しますが、モデル一覧を返しません"),
)
NO_MODEL = Case(
    "upstream.no_model",
    "warning",
    _WHAT,
    ("does not list {wanted!r}", "一覧に {wanted!r} がありません"),
    ("`upstream_model` is one of: {listed}", "`upstream_model` は次のいずれかです: {listed}"),
)


async def check_upstream(model: ModelConfig) -> list[Finding]:
    """Asks the address for its models, with its key where there is one, and compares its clock with ours."""
    told = {"model": model.name, "url": model.url}
    try:
        key = _upstream_key(model)
    except (OSError, LookupError) as error:
        return [NO_KEY.found(why=error, variable=model.api_key_env or model.api_key_file, **told)]
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(f"{model.url}/models", headers=headers) as response,
        ):
            now, status, body = time.time(), response.status, await response.read()
            date = response.headers.get("Date")
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        return [_trouble(error, told)]
    return [_judge(model, told, status, body), *check_skew(str(model.url), date, now)]


def _trouble(error: Exception, told: dict[str, str | None]) -> Finding:
    """A failure of the connection in words."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        reason = error.certificate_error
        why = getattr(reason, "verify_message", "") or str(reason)
        number = getattr(reason, "verify_code", 0)
        # 9 and 10: OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and _HAS_EXPIRED; 62 and 64: host and address mismatch.
        case = {9: TLS_EXPIRED, 10: TLS_EXPIRED, 62: TLS_NAME, 64: TLS_NAME}.get(number, TLS_SELF_SIGNED)
        return case.found(why=why, **told)
    if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError):
        return TLS_NONE.found(why=_last_words(error), **told)
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return NO_HOST.found(why=_last_words(error), **told)
    if isinstance(error, TimeoutError):
        return SILENT.found(seconds=TIMEOUT_S, **told)
    if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, ConnectionRefusedError):
        return NOBODY.found(**told)
    if isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientResponseError | aiohttp.ClientPayloadError):
        return NOT_HTTP.found(why=_last_words(error), **told)
    return UNREACHABLE.found(why=str(error) or type(error).__name__, **told)


def _last_words(error: Exception) -> str:
    cause = getattr(error, "os_error", None) or error
    return str(getattr(cause, "strerror", None) or getattr(cause, "reason", None) or cause or type(error).__name__)[
        :200
    ]


def _judge(model: ModelConfig, told: dict[str, str | None], status: int, body: bytes) -> Finding:
    if status in (401, 403):
        return KEY_REFUSED.found(status=status, **told)
    if status != 200:
        return WRONG_PATH.found(status=status, **told)
    try:
        listed = [entry.id for entry in decoded(body, _Models).data]
    except Undecodable:
        return NO_LIST.found(**told)
    wanted = model.upstream_model or model.name
    if listed and wanted not in listed:
        return NO_MODEL.found(wanted=wanted, listed=", ".join(listed[:20]), **told)
    return GOOD.found(**told)


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


def _upstream_key(model: ModelConfig) -> str | None:
    if model.api_key_env is not None:
        if not os.environ.get(model.api_key_env):
            raise LookupError(f"{model.api_key_env} is not set")
        return os.environ[model.api_key_env]
    return Path(model.api_key_file).expanduser().read_text().strip() if model.api_key_file else None
