"""The port to listen on, and proxies that would catch what is meant for this machine."""

import ipaddress
import os
from collections.abc import Mapping

import psutil

from sekisho.ops.doctor.finding import Case, Finding, Patient
from sekisho.ops.home import running
from sekisho.ops.listening import refusal

FREE = Case("port.free", "ok", ("port {port} is free", "ポート {port} は空いています"))
OURS = Case("port.ours", "ok", ("port {port} is served by this Sekisho", "ポート {port} はこの関所が使っています"))
TAKEN = Case(
    "port.taken",
    "error",
    ("{host}:{port} cannot be listened on", "{host}:{port} で待ち受けできません"),
    ("taken by {owner}", "使用中のプロセス: {owner}"),
    ("stop it, or {advice}", "終了するか、次のようにしてください: {advice}"),
)
REFUSED = Case(
    "port.refused",
    "error",
    ("{host}:{port} cannot be listened on", "{host}:{port} で待ち受けできません"),
    ("{why}", "{why}"),
    ("{advice}", "{advice}"),
)
CAUGHT = Case(
    "proxies.catch_loopback",
    "warning",
    (
        "{variable} sends requests for {host} to {proxy}",
        "{variable} により {host} 宛のリクエストが {proxy} に送られます",
    ),
    (
        "clients started here reach the proxy instead of this server, keys included",
        "ここで動かすクライアントは、キーごとプロキシに接続してしまいます",
    ),
    ("export NO_PROXY={hosts} no_proxy={hosts}", "export NO_PROXY={hosts} no_proxy={hosts}"),
)


def check_port(patient: Patient) -> list[Finding]:
    """Free, or taken by ourselves, or by somebody who is named where the system tells."""
    host, port, refused = patient.host, patient.port, refusal(patient.host, patient.port)
    if refused is None:
        return [FREE.found(port=port)]
    state = running(patient.home)
    if state is not None and state.url.rsplit(":", 1)[-1].strip("/") == str(port):
        return [OURS.found(port=port)]
    why, advice = refused
    command = advice.partition(": ")[2]
    another = ("choose another port", "別のポートを使ってください")
    here = ("choose an address of this machine", "このマシンのアドレスを指定してください")
    words = another if "--port" in command else here
    told = {"host": host, "port": port, "advice": tuple(f"{word}: {command}" for word in words)}
    owner = _port_owner(port) if words is another else None
    return [TAKEN.found(owner=owner, **told) if owner else REFUSED.found(why=why, **told)]


def _port_owner(port: int) -> str | None:
    try:
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.pid and tuple(connection.laddr)[1:2] == (port,):
                return f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
    except psutil.Error:
        return None  # the system tells this to the administrator only
    return None


def check_proxies(_patient: Patient, environment: Mapping[str, str] | None = None) -> list[Finding]:
    """Variables that clients of this machine's own server would follow. Our own connections follow none."""
    values = os.environ if environment is None else environment
    found = [name for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY") if values.get(name)]
    if not found:
        return []
    without = [entry.strip() for entry in (values.get("no_proxy") or values.get("NO_PROXY") or "").split(",")]
    for host in ("127.0.0.1", "localhost"):
        if not any(_spares(entry, host) for entry in without):
            named = ",".join(dict.fromkeys([*filter(None, without), "127.0.0.1", "localhost"]))
            return [CAUGHT.found(variable=found[0], host=host, proxy=_without_password(values[found[0]]), hosts=named)]
    return []


def _spares(entry: str, host: str) -> bool:
    """Whether an entry of `no_proxy` covers a host: `*`, the name, the end of a name, or a network."""
    if entry == "*" or entry.lstrip(".") == host:
        return True
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False


def _without_password(proxy: str) -> str:
    head, at, rest = proxy.rpartition("@")
    return f"{head.split('//')[0]}//…@{rest}" if at and "//" in head else f"…@{rest}" if at else rest
