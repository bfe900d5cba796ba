"""The database, and the keys in it: whether anybody can get in, and who could who should not."""

import datetime
import ipaddress
import time
from collections.abc import Sequence

from sekisho.core.errors import SekishoError
from sekisho.ops.doctor.finding import Case, Finding, Patient
from sekisho.ops.home import running
from sekisho.store import KeyRecord, Store

SOON_S = 7 * 86_400.0
MOST_NAMED = 5

NO_DATABASE = Case(
    "database.missing",
    "info",
    ("no database yet", "データベースはまだありません"),
    ("it is made at the first start", "最初の起動時に作られます"),
)
DATABASE_BAD = Case(
    "database.unusable",
    "error",
    ("the database cannot be used", "データベースを使えません"),
    ("{why}", "{why}"),
    ("{fix}", "{fix}"),
)
DATABASE_GOOD = Case("database.good", "ok", ("the database opens", "データベースを開けました"))
_FILE_FIX = ("check the file's rights and the disk", "ファイルの権限とディスクを確認してください")
_URL_FIX = (
    "check DATABASE_URL, and that the database runs",
    "DATABASE_URL と、データベースの稼働を確認してください",
)

NO_KEY = Case(
    "keys.none",
    "warning",
    ("nobody has a key", "キーがひとつもありません"),
    ("every request is turned away", "すべてのリクエストが拒否されます"),
    ("sekisho key create --name …", "sekisho key create --name …"),
)
NONE_WORKS = Case(
    "keys.all_dead",
    "error",
    (
        "no key works: {revoked} revoked, {expired} expired",
        "使えるキーがありません: 失効 {revoked} 件、期限切れ {expired} 件",
    ),
    ("every request is turned away", "すべてのリクエストが拒否されます"),
    ("sekisho key create --name …", "sekisho key create --name …"),
)
ADMIN_ANYWHERE = Case(
    "keys.admin_anywhere",
    "warning",
    (
        "admin keys that work from any address, on {host}: {names}",
        "{host} で待ち受け中、どのアドレスからでも使える管理者キーがあります: {names}",
    ),
    (
        "other machines reach this server; a stolen admin key would open it from everywhere",
        "サーバーは他のマシンから到達できます。管理者キーが漏れると、どこからでも使われます",
    ),
    (
        "sekisho key create --name … --scopes admin --allow-network 10.0.0.0/8, then sekisho key revoke {first}; "
        "or gateway.allow_networks",
        "sekisho key create --name … --scopes admin --allow-network 10.0.0.0/8 のあと sekisho key revoke {first}。"
        "または gateway.allow_networks",
    ),
)
EXPIRES_SOON = Case(
    "keys.expire_soon",
    "warning",
    ("keys end within 7 days: {names}", "7 日以内に期限が切れるキー: {names}"),
    ("then they are answered 401", "期限後は 401 になります"),
    (
        "make new ones before: sekisho key create --name … --expires 90d",
        "その前に新しいキーを作ってください: sekisho key create --name … --expires 90d",
    ),
)
GOOD = Case("keys.good", "ok", ("{count} keys work", "使えるキー: {count} 件"))


async def check_database(patient: Patient) -> list[Finding]:
    """Opens the database as the server will, but changes nothing in it."""
    url = patient.database
    if url is None:
        return []
    is_file = "://" not in url
    if is_file and not patient.home.database.exists():
        return [NO_DATABASE.found()]
    try:
        store = await Store.open(url, migrate=False)
        try:
            keys = await store.list_keys(include_revoked=True)
        finally:
            await store.close()
    except SekishoError as error:
        return [DATABASE_BAD.found(why=error.message, fix=_FILE_FIX if is_file else _URL_FIX)]
    return [DATABASE_GOOD.found(), *judge_keys(patient, keys, time.time())]


def judge_keys(patient: Patient, keys: Sequence[KeyRecord], now: float) -> list[Finding]:
    """`now` in seconds since 1970."""
    revoked = [key for key in keys if key.revoked_at is not None]
    expired = [key for key in keys if key.revoked_at is None and _ended(key, now)]
    living = [key for key in keys if key.revoked_at is None and not _ended(key, now)]
    if not keys:
        return [NO_KEY.found()] if running(patient.home) is not None else []
    if not living:
        return [NONE_WORKS.found(revoked=len(revoked), expired=len(expired))]
    findings = []
    admins = [key for key in living if "admin" in key.scopes and not key.networks]
    if admins and not is_loopback(patient.host) and not patient.allow_networks:
        names = _names([key.name for key in admins])
        findings.append(ADMIN_ANYWHERE.found(host=patient.host, names=names, first=admins[0].name))
    soon = [key for key in living if key.expires_at is not None and key.expires_at - now < SOON_S]
    if soon:
        told = [f"{key.name} ({_day(key.expires_at)})" for key in sorted(soon, key=lambda key: key.expires_at or 0.0)]
        findings.append(EXPIRES_SOON.found(names=_names(told)))
    return [*findings, GOOD.found(count=len(living))]


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens on `host`."""
    name = host.strip("[]")
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def _ended(key: KeyRecord, now: float) -> bool:
    return key.expires_at is not None and key.expires_at <= now


def _names(names: list[str]) -> str:
    more = f" … (+{len(names) - MOST_NAMED})" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def _day(moment: float | None) -> str:
    return f"{datetime.datetime.fromtimestamp(moment or 0.0, datetime.UTC):%Y-%m-%d}"
