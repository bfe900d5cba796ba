"""`sekisho model pull` against a local hub: fetched, checked, added."""

import hashlib
import json
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from sekisho.cli.running import run

FILES = {f"M-Q4_K_M-0000{part}-of-00002.gguf": struct.pack("<4sIQQ", b"GGUF", 3, 0, part) * 1000 for part in (1, 2)}
FILES["M-Q8_0.gguf"] = b"GGUF" + bytes(5000)


class LocalHub(BaseHTTPRequestHandler):
    """Lists FILES and serves them; answers a resume with the whole file."""

    fetched: list[str]

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path.startswith("/api/models/owner/M-GGUF/tree/main"):
            entries = [
                {
                    "type": "file",
                    "path": name,
                    "size": len(body),
                    "lfs": {"oid": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 130},
                }
                for name, body in FILES.items()
            ]
            self.answer(json.dumps(entries).encode())
        elif path.startswith("/owner/M-GGUF/resolve/main/") and path.rsplit("/", 1)[-1] in FILES:
            self.fetched.append(path.rsplit("/", 1)[-1])
            self.answer(FILES[path.rsplit("/", 1)[-1]])
        else:
            self.send_error(404)

    def answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"one"')
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        """Quiet: the test says what matters."""


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    LocalHub.fetched = []
    with ThreadingHTTPServer(("127.0.0.1", 0), LocalHub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("SEKISHO_HOME", str(tmp_path / "home"))
        yield LocalHub.fetched
        server.shutdown()
        thread.join()


def test_pull_adds_a_split_model(fetched: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All parts come, the first one is what the settings name; a second pull fetches nothing and changes nothing."""
    assert run(["model", "pull", "owner/M-GGUF", "--json", "--context", "2048"]) == 0
    report = json.loads(capsys.readouterr().out)
    folder = tmp_path / "home" / "models" / "owner--M-GGUF"
    assert report["files"] == [str(folder / name) for name in sorted(FILES) if "Q4" in name]
    assert all(Path(file).read_bytes() == FILES[Path(file).name] for file in report["files"])
    text = (tmp_path / "home" / "sekisho.yaml").read_text()
    assert f"path: {report['files'][0]}" in text
    assert "context: 2048" in text
    assert len(fetched) == 2
    assert run(["model", "pull", "owner/M-GGUF"]) == 0
    assert "checksum is right" in capsys.readouterr().out
    assert (tmp_path / "home" / "sekisho.yaml").read_text() == text
    assert len(fetched) == 2


def test_pull_by_quantisation_without_adding(fetched: list[str], tmp_path: Path) -> None:
    """--file chooses, --no-add leaves the settings alone."""
    assert run(["model", "pull", "owner/M-GGUF", "--file", "q8_0", "--no-add"]) == 0
    assert fetched == ["M-Q8_0.gguf"]
    assert not (tmp_path / "home" / "sekisho.yaml").exists()


@pytest.mark.parametrize(("arguments", "code"), [(["owner/none"], 3), (["owner/M-GGUF", "--file", "Q2_K"], 3)])
def test_pull_of_nothing(
    fetched: list[str], arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unknown repository or file ends with 3 and fetches nothing."""
    assert run(["model", "pull", *arguments]) == code
    assert fetched == []
    assert "Traceback" not in capsys.readouterr().err
