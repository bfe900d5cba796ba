"""Findings about ports, proxies, addresses, certificates and servers that are really there."""

import asyncio
import datetime
import ipaddress
import os
import socket
import ssl
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import msgspec
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

sys.path.insert(0, str(Path(__file__).parent))  # the harness lies beside the tests

from doctor_harness import cases, only, patient

from sekisho.engines.config import ModelConfig
from sekisho.ops import process_tree
from sekisho.ops.children_file import ChildrenFile, ChildStatus
from sekisho.ops.doctor import Finding, network, processes, upstream
from sekisho.ops.home import Home, RunState, write_state


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.7", "a" * 300])
def test_a_host_that_is_not_here_is_no_question_of_the_port(tmp_path: Path, host: str) -> None:
    """An unknown name, or another machine's address: told as such, and never with another port."""
    found = only(network.check_port(patient(Home(tmp_path), host=host, port=8123)))
    assert found.case == "port.refused"
    assert "--host" in found.fix
    assert "--port" not in found.fix


def test_port_free_taken_and_ours(tmp_path: Path) -> None:
    """A free port is fine, one that somebody holds is told with the process, our own server's port is fine."""
    home = Home(tmp_path).create()
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
        holder.listen()
        taken = only(network.check_port(patient(home, port=port)))
        assert (taken.case, taken.severity) == ("port.taken", "error")
        assert f"(process {os.getpid()})" in taken.why
        assert str(port + 1) in taken.fix
        write_state(home, RunState.of_this_process(f"http://127.0.0.1:{port}", "1"))
        assert only(network.check_port(patient(home, port=port))).case == "port.ours"
    assert only(network.check_port(patient(home, port=port))).case == "port.free"


class Proxy(BaseHTTPRequestHandler):
    """Answers everything itself."""

    def do_GET(self) -> None:
        self.send_response(418)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"])
def test_a_proxy_that_catches_loopback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """The official clients' HTTP library really goes to the proxy, which the finding says; after the fix it does not,
    and nothing is found."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    home = patient(Home(tmp_path))
    assert network.check_proxies(home) == []
    proxy = HTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))  # listens to nobody: who comes here is refused
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        monkeypatch.setenv(variable, f"http://taro:geheim@127.0.0.1:{proxy.server_port}")
        assert httpx.get(url, timeout=60).status_code == 418
        found = only(network.check_proxies(home))
        assert (found.case, variable in found.what) == ("proxies.catch_loopback", True)
        assert "geheim" not in repr(found)
        monkeypatch.setenv("NO_PROXY", found.fix.split()[1].partition("=")[2])
        assert network.check_proxies(home) == []
        with pytest.raises(httpx.ConnectError):
            httpx.get(url, timeout=60)
    proxy.shutdown()
    proxy.server_close()


def test_exceptions_to_a_proxy(tmp_path: Path) -> None:
    """Names, networks and a star spare this machine; others do not, and are kept in the fix."""
    home = patient(Home(tmp_path))

    def found(without: str) -> list[Finding]:
        return network.check_proxies(home, {"http_proxy": "http://proxy:3128", "no_proxy": without})

    for enough in ("*", "localhost,127.0.0.1", "localhost, 127.0.0.0/8 ,.corp", ".localhost,127.0.0.1"):
        assert found(enough) == []
    for little in ("", ".corp,10.0.0.0/8", "127.0.0.1", "localhost"):
        assert cases(found(little)) == ["proxies.catch_loopback"]
    assert "no_proxy=.corp,10.0.0.0/8,127.0.0.1,localhost" in found(".corp,10.0.0.0/8")[0].fix


Serve = Callable[..., Awaitable[str]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """`serve(tls, headers)` starts a server that lists one model at /v1 for the right key; its address."""
    runners: list[web.AppRunner] = []

    async def start(tls: ssl.SSLContext | None = None, headers: dict[str, str] | None = None) -> str:
        async def models(request: web.Request) -> web.Response:
            if request.headers.get("Authorization") != "Bearer right":
                return web.Response(status=401)
            return web.json_response({"object": "list", "data": [{"id": "qwen"}]}, headers=headers)

        async def odd(_request: web.Request) -> web.Response:
            return web.Response(text="<html>")

        async def latin1(_request: web.Request) -> web.Response:
            return web.Response(body=b'{"data": [{"id": "caf\xe9"}]}', content_type="application/json")

        application = web.Application()
        application.router.add_get("/v1/models", models)
        application.router.add_get("/latin1/models", latin1)
        application.router.add_get("/odd/models", odd)
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        runners.append(runner)
        return f"{'https' if tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}"

    yield start
    for runner in runners:
        await runner.cleanup()


async def ask(url: str, **fields: str) -> list[Finding]:
    fields = {"api_key_env": "RIGHT", "upstream_model": "qwen", **fields}
    fields = {name: value for name, value in fields.items() if value}
    return await upstream.check_upstream(ModelConfig(name="m", engine="openai_http", url=url, **fields))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def right_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIGHT", "right")


async def test_upstream_answers(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The right key and model are fine; wrong key, unset variable, unknown model and other pages are told."""
    url = await serve()
    monkeypatch.delenv("UNSET", raising=False)
    (tmp_path / "wrong").write_text("wrong\n")
    assert only(await ask(f"{url}/v1")).case == "upstream.good"
    unknown = only(await ask(f"{url}/v1", upstream_model="other"))
    assert (unknown.case, "qwen" in unknown.fix) == ("upstream.no_model", True)
    refused = only(await ask(f"{url}/v1", api_key_env="", api_key_file=str(tmp_path / "wrong")))
    assert (refused.case, refused.why) == ("upstream.key_refused", "answers 401")
    unset = only(await ask(f"{url}/v1", api_key_env="UNSET"))
    assert (unset.case, "UNSET is not set" in unset.why) == ("upstream.no_key", True)
    missing = only(await ask(f"{url}/v1", api_key_env="", api_key_file=str(tmp_path / "none")))
    assert missing.case == "upstream.no_key"
    assert only(await ask(f"{url}/odd")).case == "upstream.no_list"
    assert only(await ask(f"{url}/latin1")).case == "upstream.no_list"
    assert only(await ask(f"{url}/none")).why == "answers 404 for /models"
    assert only(await ask(f"{url}/none")).case == "upstream.wrong_path"


async def test_upstream_whose_clock_differs(serve: Serve) -> None:
    """An answer that says another time is a second finding beside the good one."""
    yesterday = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    url = await serve(headers={"Date": f"{yesterday:%a, %d %b %Y %H:%M:%S} GMT"})
    good, skew = await ask(f"{url}/v1")
    assert (good.case, skew.case, skew.severity) == ("upstream.good", "clock.far_off", "error")


def unknown(host: str, *_: object, **__: object) -> list[object]:
    """A name service that knows no name."""
    raise socket.gaierror(socket.EAI_NONAME, f"{host}: Name or service not known")


async def test_upstream_out_of_reach(unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody there, no such name, no answer, something else than HTTP and a broken address are told apart."""
    assert only(await ask(f"http://127.0.0.1:{unused_tcp_port}/v1")).case == "upstream.refused"
    assert only(await ask("http://[::1/v1")).case == "upstream.unreachable"
    with monkeypatch.context() as names:
        names.setattr(socket, "getaddrinfo", unknown)  # not asked for in earnest: some networks know every name
        assert only(await ask("http://no-such-host.invalid/v1")).case == "upstream.unknown_host"
    monkeypatch.setattr(upstream, "TIMEOUT_S", 0.3)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        assert only(await ask(f"http://127.0.0.1:{mute.getsockname()[1]}/v1")).case == "upstream.silent"


@pytest.mark.parametrize("words", [b"SSH-2.0-OpenSSH_9.2\r\n", b""], ids=["ssh", "hangs up"])
async def test_upstream_that_is_no_http_server(words: bytes) -> None:
    """Another protocol, and one that hangs up at once."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        while True:  # a client may try again
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                connection.sendall(words)

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    found = only(await ask(f"http://127.0.0.1:{listener.getsockname()[1]}/v1"))
    assert (found.case, "https://" in found.fix) == ("upstream.not_http", True)
    listener.shutdown(socket.SHUT_RDWR)
    thread.join()
    listener.close()


def certificate(folder: Path, name: str, days: int = 30, age_days: int = 1) -> ssl.SSLContext:
    """A server's side of TLS with a certificate of its own making, also at `<folder>/<name>.pem`."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    try:
        alternative: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        alternative = x509.DNSName(name)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=age_days))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = folder / f"{name}.pem"
    pem.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret = folder / f"{name}.key"
    form = serialization.PrivateFormat.PKCS8
    secret.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, secret)
    return context


async def ask_trusting(pem: Path, url: str) -> list[Finding]:
    """As a process finds it that was started after `export SSL_CERT_FILE=…`."""
    script = (
        "import sys; sys.path[:0] = eval(sys.argv[1]); import asyncio, msgspec\n"
        "from sekisho.engines.config import ModelConfig; from sekisho.ops.doctor import upstream\n"
        "upstream.TIMEOUT_S = 100.0\n"
        "model = ModelConfig(name='qwen', engine='openai_http', url=sys.argv[2], api_key_env='RIGHT')\n"
        "print(msgspec.json.encode(asyncio.run(upstream.check_upstream(model))).decode())\n"
    )
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script, repr(sys.path), url),
        env=os.environ | {"SSL_CERT_FILE": str(pem)},
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await child.communicate()
    return msgspec.json.decode(output, type=list[Finding])


async def test_certificates(serve: Serve, tmp_path: Path) -> None:
    """Signed by nobody we know, for another name, and expired are told apart; after the fix it is good."""
    sound = await serve(certificate(tmp_path, "127.0.0.1"))
    unknown = only(await ask(f"{sound}/v1"))
    assert (unknown.case, "SSL_CERT_FILE" in unknown.fix) == ("upstream.tls_untrusted", True)
    assert only(await ask_trusting(tmp_path / "127.0.0.1.pem", f"{sound}/v1")).case == "upstream.good"
    other = await serve(certificate(tmp_path, "llm.example.com"))
    assert only(await ask_trusting(tmp_path / "llm.example.com.pem", f"{other}/v1")).case == "upstream.tls_name"
    old = await serve(certificate(tmp_path, "127.0.0.1", days=-1, age_days=30))
    assert only(await ask_trusting(tmp_path / "127.0.0.1.pem", f"{old}/v1")).case == "upstream.tls_expired"


async def test_tls_on_one_side_only(serve: Serve, tmp_path: Path) -> None:
    """https to a server without TLS, and http to one with it: each names the other scheme."""
    plain = await serve()
    found = only(await ask(plain.replace("http://", "https://") + "/v1"))
    assert (found.case, "http://" in found.fix) == ("upstream.tls_none", True)
    secure = await serve(certificate(tmp_path, "127.0.0.1"))
    found = only(await ask(secure.replace("https://", "http://") + "/v1"))
    assert (found.case, "https://" in found.fix) == ("upstream.not_http", True)


async def test_the_server_of_the_home(tmp_path: Path, unused_tcp_port: int) -> None:
    """No process is only told; a living one that is silent or not ready is an error; one that is ready is good."""
    home = Home(tmp_path).create()
    assert only(await processes.check_server(patient(home))).case == "server.not_running"
    write_state(home, RunState.of_this_process(f"http://127.0.0.1:{unused_tcp_port}", "1"))
    assert only(await processes.check_server(patient(home))).case == "server.silent"
    status = 503

    async def readyz(_request: web.Request) -> web.Response:
        return web.Response(status=status)

    application = web.Application()
    application.router.add_get("/readyz", readyz)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", unused_tcp_port, reuse_address=True).start()
    assert only(await processes.check_server(patient(home))).case == "server.not_ready"
    status = 200
    assert only(await processes.check_server(patient(home))).case == "server.ready"
    await runner.cleanup()


def test_children_in_trouble(tmp_path: Path) -> None:
    """What the living supervisor notes of its children is told with their last words; a dead one's notes are old."""
    home = Home(tmp_path).create()
    children = [
        ChildStatus("gateway", "running", 1, "b", restarts=1),
        ChildStatus("engine-a~next", "failing", exit_code=-6, log_tail=("one", "ggml: out of memory")),
        ChildStatus("engine-b", "misconfigured", exit_code=78, log_tail=("no such file",)),
        ChildStatus("engine-c", "running", 2, "b", restarts=3, exit_code=-9),
    ]
    note = ChildrenFile("run_1", os.getpid(), process_tree.birth(os.getpid()), children)
    home.children_file.write_bytes(msgspec.json.encode(note))
    found = processes.check_children(patient(home))
    assert cases(found) == ["processes.crashing", "processes.misconfigured", "processes.restarted"]
    assert (found[0].why, str(home.logs / "engine-a.log") in found[0].fix) == ("ggml: out of memory", True)
    home.children_file.write_bytes(msgspec.json.encode(ChildrenFile("run_1", os.getpid(), "an earlier one", children)))
    assert processes.check_children(patient(home)) == []
