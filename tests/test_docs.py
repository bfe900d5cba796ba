"""The pages name everything that exists, and nothing that does not."""

import ast
import datetime
import ipaddress
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import httpx
import pytest
import typer.main
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from sekisho.cli.app import app
from sekisho.gateway import page
from sekisho.gateway.config import GatewayConfig
from sekisho.gateway.metrics import Metrics
from sekisho.gateway.router import Route
from sekisho.gateway.routes import ROUTES
from sekisho.ops.home import Home
from sekisho.serve import Plan
from sekisho.settings import Settings
from sekisho.store import KeySpec

sys.path.insert(0, str(Path(__file__).parent / "gateway"))  # the harness lives beside the gateway's tests

from gateway_harness import FAKE, UNGUARDED, LiveGateway, chat

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SOURCE = ROOT / "src" / "sekisho"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
SPEC_IDS = (Path(__file__).parent / "spec_ids.txt").read_text(encoding="utf-8").split()
ALL_ROUTES = (*ROUTES, *page.routes(lambda name: None, {}))

_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_PROOF = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def prose(text: str) -> str:
    """A page without its code."""
    return re.sub(r"`[^`\n]*`", "", _FENCE.sub("", text))


def blocks(text: str, *languages: str) -> Iterator[str]:
    for language, body in _FENCE.findall(text):
        if language in languages:
            yield body


def anchors(path: Path) -> set[str]:
    """The fragments of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", read(path)), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", heading).lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}


def rows(path: Path) -> dict[str, list[str]]:
    """The table rows of a page by their first cell, without its code marks."""
    found: dict[str, list[str]] = {}
    for line in read(path).splitlines():
        if line.startswith("| "):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
            found.setdefault(cells[0].strip("`"), cells[1:])
    return found


@cache
def function_names(path: Path) -> frozenset[str]:
    nodes = ast.walk(ast.parse(read(path)))
    return frozenset(node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


# --- links, files, commands -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(path: Path) -> None:
    """A link names a file of the repository, and a heading of it where it names one."""
    for target in _LINK.findall(prose(read(path))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, fragment = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), f"{path.name}: {target}"
        assert not fragment or fragment in anchors(file), f"{path.name}: {target}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_and_test_that_is_named_exists(path: Path) -> None:
    """A path in code marks is a file of the repository or of the package; a test that is named with it is in it."""
    for name, test in re.findall(r"`((?:\w+/)+\w+\.(?:py|md|yaml|toml))(?:::(\w+))?`", read(path)):
        file = next((base / name for base in (ROOT, SOURCE, path.parent) if (base / name).is_file()), None)
        assert file is not None, f"{path.name}: {name}"
        assert not test or test in function_names(file), f"{path.name}: {name}::{test}"


def test_every_page_can_be_reached_from_the_readme() -> None:
    """Whoever starts at the README finds every page by links."""
    seen: set[Path] = set()
    pending = [ROOT / "README.md"]
    while pending:
        path = pending.pop()
        if path in seen or path.suffix != ".md":
            continue
        seen.add(path)
        targets = [target.partition("#")[0] for target in _LINK.findall(prose(read(path)))]
        pending += [(path.parent / target).resolve() for target in targets if target and ":" not in target]
    assert sorted(str(path.relative_to(ROOT)) for path in set(PAGES) - seen) == []


def commands() -> dict[str, set[str]]:
    """Every command line's words with its options."""
    found: dict[str, set[str]] = {}
    pending = [("sekisho", typer.main.get_command(app))]
    while pending:
        name, command = pending.pop()
        children = getattr(command, "commands", {})
        found[name] = {option for p in command.params for option in (*p.opts, *p.secondary_opts)} | {"--help", "-h"}
        pending += [(f"{name} {child}", value) for child, value in children.items()]
    return found


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_that_is_shown_exists(path: Path) -> None:
    """A `sekisho` line of a page is a command of the program with options that it has."""
    known = commands()
    for body in blocks(read(path), "", "sh", "shell", "console", "bash"):
        for line in body.replace("\\\n", " ").splitlines():
            words = line.removeprefix("$ ").split("#")[0].split()
            if not words or words[0] != "sekisho":
                continue
            name = next((c for n in (3, 2, 1) if (c := " ".join(words[:n])) in known), "")
            options = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
            assert name != "sekisho" or len(words) == 1 or words[1].startswith("-"), f"{path.name}: {line}"
            assert options <= known[name] | known["sekisho"], f"{path.name}: {line}"


def test_every_make_target_is_explained() -> None:
    """Each target stands in the README or in CONTRIBUTING."""
    targets = re.findall(r"^([a-z-]+):.*##", read(ROOT / "Makefile"), re.MULTILINE)
    text = read(ROOT / "README.md") + read(ROOT / "CONTRIBUTING.md")
    assert [target for target in targets if not re.search(rf"`?make {target}(?![\w-])", text)] == []


def test_the_readmes_say_the_same() -> None:
    """Both languages show the same commands and lead to the same pages."""
    english, japanese = read(ROOT / "README.md"), read(ROOT / "README.ja.md")
    assert [body.strip() for body in blocks(english, "sh")] == [body.strip() for body in blocks(japanese, "sh")]
    other = {"README.md", "README.ja.md", "docs/mini.md", "docs/mini.ja.md"}
    assert set(_LINK.findall(english)) - other == set(_LINK.findall(japanese)) - other


def test_the_architecture_names_what_there_is() -> None:
    """Every package has its sentence, eight steps each name a file, and every file that is named exists."""
    text = read(ROOT / "ARCHITECTURE.md")
    for package in SOURCE.iterdir():
        if package.is_dir() and package.name != "__pycache__":
            assert re.search(rf"^- `{package.name}`", text, re.MULTILINE), package.name
    steps = re.findall(r"^\d\. .*$", text.partition("\n## ")[2].partition("\n## ")[0], re.MULTILINE)
    assert len(steps) == 8
    assert all(re.search(r"`[\w/]+\.py`", step) for step in steps)
    for name in re.findall(r"`([\w/]+\.(?:py|yaml))`", text):
        assert name == "sekisho.yaml" or (SOURCE / name).exists() or (ROOT / name).exists(), name


# --- features and limits --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("identifier", SPEC_IDS)
def test_every_row_of_the_specification_has_its_state(identifier: str) -> None:
    """Each is done, partly done or not yet; what is done names tests, and the tests exist."""
    cells = rows(DOCS / "features.md")[identifier]
    state, proof = cells[1], cells[-1]
    assert state in ("done", "partly", "not yet")
    proofs = _PROOF.findall(proof)
    assert bool(proofs) == (state != "not yet"), f"{identifier}: {state} with {len(proofs)} tests"
    for file, name in proofs:
        assert (ROOT / file).is_file(), file
        assert name in function_names(ROOT / file), f"{file}::{name}"


def test_no_row_is_invented() -> None:
    """The page has the rows of the specification and no others."""
    found = [name for name in rows(DOCS / "features.md") if re.fullmatch(r"[A-Z]\d+", name)]
    assert found == SPEC_IDS


# --- the protocols and the server -----------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ALL_ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_every_route_is_in_the_pages(route: Route) -> None:
    """docs/protocols.md names each address with its method, and the scope that it wants."""
    cells = rows(DOCS / "protocols.md").get(f"{route.method} {route.path}")
    assert cells is not None
    assert cells[0].strip("`") == ("no key" if route.public else route.scope or "any key")


def metric_names() -> list[str]:
    families = Metrics().registry.collect()
    return [family.name + ("_total" if family.type == "counter" else "") for family in families]


def test_every_metric_is_in_the_pages() -> None:
    """docs/operations.md has a row for each metric, and none for another."""
    named = [name for name in rows(DOCS / "operations.md") if name.startswith("sekisho_")]
    assert sorted(named) == sorted(metric_names())


def error_codes() -> set[str]:
    """Every code that the source can give an error: of a class, as `code=...`, in an object, or chosen in a variable
    of that name."""
    codes: set[str] = set()
    for file in SOURCE.rglob("*.py"):
        if file.is_relative_to(SOURCE / "cli") or file.name.startswith("fake"):
            continue
        for node in ast.walk(ast.parse(read(file))):
            values: list[ast.expr | None] = []
            if isinstance(node, ast.AnnAssign | ast.Assign | ast.keyword) and "code" in _assigned(node):
                values = [node.value]
            elif isinstance(node, ast.Call) and _names(node.func) & {"Failed", "ErrorView"}:
                values = list(node.args[1:2])
            elif isinstance(node, ast.Dict):
                keys = [key.value if isinstance(key, ast.Constant) else None for key in node.keys]
                values = [value for key, value in zip(keys, node.values, strict=True) if key == "code"]
            for value in values:
                codes |= _texts(value)
    return codes


def _assigned(node: ast.AnnAssign | ast.Assign | ast.keyword) -> set[str | None]:
    """The names that get the node's value."""
    if isinstance(node, ast.keyword):
        return {node.arg}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return {name for target in targets for name in _names(target)}


def _names(node: ast.expr) -> set[str]:
    return {node.id} if isinstance(node, ast.Name) else {node.attr} if isinstance(node, ast.Attribute) else set()


def _texts(node: ast.expr | None) -> set[str]:
    """The literal texts that an expression may be."""
    if isinstance(node, ast.IfExp):
        return _texts(node.body) | _texts(node.orelse)
    if isinstance(node, ast.BoolOp):
        return {text for value in node.values for text in _texts(value)}
    return {node.value} if isinstance(node, ast.Constant) and isinstance(node.value, str) else set()


def test_every_error_code_is_explained() -> None:
    """docs/operations.md has a row for each code of the source, and none for another."""
    text = read(DOCS / "operations.md").partition("\n## Troubleshooting")[2]
    named = re.findall(r"^\| `([a-z_]+)` \|", text, re.MULTILINE)
    assert sorted(named) == sorted(error_codes())


@pytest.fixture
def nginx(tmp_path: Path) -> Callable[..., list[str]]:
    """`nginx(**replaced)` writes the server block of docs/operations.md into a configuration, with a certificate where
    the page names one, and gives the command line."""
    program = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
    if program is None:
        pytest.skip("nginx is not installed here (Debian: apt-get install nginx)")

    def written(**replaced: str) -> list[str]:
        (body,) = blocks(read(DOCS / "operations.md"), "nginx")
        certificate, key = self_signed(tmp_path)
        values = {"ssl_certificate": str(certificate), "ssl_certificate_key": str(key), **replaced}
        for name, value in values.items():
            body, count = re.subn(rf"^(\s*{name}) [^;]+;", rf"\1 {value};", body, flags=re.MULTILINE)
            assert count == 1, name
        folders = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        body += "".join(f"{name}_temp_path {tmp_path}/{name};\n" for name in folders)
        config = tmp_path / "nginx.conf"
        config.write_text(f"pid {tmp_path}/pid;\nevents {{}}\nhttp {{\naccess_log off;\n{body}\n}}\n")
        return [program, "-q", "-e", str(tmp_path / "error.log"), "-p", str(tmp_path), "-c", str(config)]

    return written


def test_the_nginx_lines_are_valid(nginx: Callable[..., list[str]], tmp_path: Path) -> None:
    """nginx itself takes the server block as it stands in the page."""
    done = subprocess.run([*nginx(), "-t"], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr + (tmp_path / "error.log").read_text()


def test_behind_nginx_tokens_come_at_once_and_callers_are_told_apart(
    nginx: Callable[..., list[str]], tmp_path: Path, unused_tcp_port: int
) -> None:
    """Through the page's own lines: the first word of an answer that never ends arrives, leaving frees the slot, and
    a key that is bound to a network is refused to a caller who only claims to be in it."""
    home = Home(tmp_path / "home").create()
    config = GatewayConfig(port=0, trusted_proxies=("127.0.0.1/32",))  # as the page says
    live = LiveGateway(home, Plan(Settings(gateway=config, models=(FAKE,), guard=UNGUARDED), {})).start()
    key = live.create_key(KeySpec(name="bound", networks=("127.0.0.2/32",)))[1]
    command = nginx(listen=f"127.0.0.1:{unused_tcp_port} ssl reuseport", proxy_pass=live.url)
    proxy = subprocess.Popen([*command, "-g", "daemon off; master_process off;"], stdin=subprocess.DEVNULL)
    try:
        wait_for(unused_tcp_port, proxy)
        trust = ssl.create_default_context(cafile=str(tmp_path / "certificate.pem"))
        url, headers = f"https://127.0.0.1:{unused_tcp_port}/v1/chat/completions", {"x-api-key": key}
        from_inside, from_outside = (
            httpx.HTTPTransport(verify=trust, local_address=address) for address in ("127.0.0.2", "127.0.0.3")
        )
        with httpx.Client(transport=from_inside, timeout=60) as insider:
            with insider.stream(
                "POST", url, headers=headers, json=chat("stall:2 one two three", stream=True)
            ) as answer:
                words = (line for line in answer.iter_lines() if '"content":"one' in line)
                assert next(words)
            queue = live.gateway.roster.entries["fake"].queue
            deadline = time.monotonic() + 30
            while queue.running:
                assert time.monotonic() < deadline, "the slot stayed taken"
                time.sleep(0.02)
        with httpx.Client(transport=from_outside, timeout=60) as outsider:
            claimed = {**headers, "x-forwarded-for": "127.0.0.2"}
            refused = outsider.post(url, headers=claimed, json=chat("hello"))
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "network_not_allowed")
    finally:
        proxy.terminate()
        proxy.wait(30)
        live.stop()


def wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 60).close()
        except ConnectionRefusedError:
            assert process.poll() is None, "nginx did not start"
            assert time.monotonic() < deadline, "nginx does not listen"
            time.sleep(0.02)
        else:
            return


def self_signed(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and its key, as files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "llm.example.com")])
    begin = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    own = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), extensions=[])
    builder = builder.add_extension(own, critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    signed = builder.not_valid_before(begin).not_valid_after(begin.replace(year=2046)).sign(key, hashes.SHA256())
    certificate, private = folder / "certificate.pem", folder / "key.pem"
    certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    unlocked = serialization.NoEncryption()
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, unlocked))
    return certificate, private


# --- decisions and style --------------------------------------------------------------------------------------------


def test_decisions_are_numbered_without_a_gap_and_have_their_four_parts() -> None:
    """Each decision tells its context, the options, the choice and the cost."""
    files = sorted((DOCS / "decisions").glob("*.md"))
    assert [file.name[:4] for file in files] == [f"{number:04d}" for number in range(1, len(files) + 1)]
    for file in files:
        text = read(file)
        for part in ("Context", "Options", "Choice", "Cost"):
            assert re.search(rf"^## {part}\b", text, re.MULTILINE), f"{file.name}: {part}"
