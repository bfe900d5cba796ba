"""Settings for the programs that talk to a Sekisho: with the right address and model, and the key by reference only."""

import json
import shlex
from collections.abc import Callable

import msgspec
import yaml

KEY_VARIABLE = "SEKISHO_KEY"


class Setup(msgspec.Struct, frozen=True):
    """What a client needs to know. `url` is the server's address without `/v1`."""

    url: str
    model: str
    models: tuple[str, ...] = ()
    key_variable: str = KEY_VARIABLE

    @property
    def base_url(self) -> str:
        return f"{self.url.rstrip('/')}/v1"

    @property
    def all_models(self) -> tuple[str, ...]:
        return self.models or (self.model,)


class Block(msgspec.Struct, frozen=True):
    """One thing to put somewhere: `where` is a file or a place in the program, `language` how the text is written."""

    where: str
    language: str
    text: str


class Guide(msgspec.Struct, frozen=True):
    title: str
    blocks: tuple[Block, ...]
    notes: tuple[str, ...] = ()


def curl_line(setup: Setup, question: str = "What is Sekisho?") -> str:
    """One line for a POSIX shell; the key comes from the environment."""
    body = json.dumps({"model": setup.model, "messages": [{"role": "user", "content": question}]}, ensure_ascii=False)
    address = shlex.quote(f"{setup.base_url}/chat/completions")
    header = f'"Authorization: Bearer ${setup.key_variable}"'
    return f"curl -sS {address} -H {header} -H 'Content-Type: application/json' -d {shlex.quote(body)}"


def _curl(setup: Setup) -> Guide:
    key = f"export {setup.key_variable}=…    # the key from `sekisho key create`"
    stream = curl_line(setup).replace("curl -sS", "curl -sSN").replace('{"model"', '{"stream": true, "model"')
    return Guide(
        "curl",
        (
            Block("shell, once", "sh", key),
            Block("shell", "sh", curl_line(setup)),
            Block("shell, streaming", "sh", stream),
        ),
    )


def _powershell(setup: Setup) -> Guide:
    address, model = _powershell_text(f"{setup.base_url}/chat/completions"), _powershell_text(setup.model)
    lines = (
        f"$body = @{{ model = {model}; messages = @(@{{ role = 'user'; content = 'What is Sekisho?' }}) }} "
        "| ConvertTo-Json -Depth 8",
        f"$answer = Invoke-RestMethod -Method Post -Uri {address} "
        f'-Headers @{{ Authorization = "Bearer $env:{setup.key_variable}" }} '
        "-ContentType 'application/json; charset=utf-8' -Body ([System.Text.Encoding]::UTF8.GetBytes($body))",
        "$answer.choices[0].message.content",
    )
    secret = f"$env:{setup.key_variable} = '…'    # the key from `sekisho key create`"
    return Guide(
        "PowerShell",
        (Block("PowerShell, once", "powershell", secret), Block("PowerShell", "powershell", "\n".join(lines))),
    )


def _codex(setup: Setup) -> Guide:
    text = "\n".join(
        (
            f"model = {_toml_text(setup.model)}",
            'model_provider = "sekisho"',
            "",
            "[model_providers.sekisho]",
            'name = "Sekisho"',
            f"base_url = {_toml_text(setup.base_url)}",
            f"env_key = {_toml_text(setup.key_variable)}",
            'wire_api = "responses"',
        )
    )
    return Guide(
        "Codex CLI",
        (Block("~/.codex/config.toml", "toml", text), _export(setup)),
        ("Codex sends long prompts with tools: use a model with a context of 32,768 tokens or more.",),
    )


def _lobehub(setup: Setup) -> Guide:
    models = ",".join(("-all", *(f"+{name}" for name in setup.all_models)))
    lines = (
        f"OPENAI_PROXY_URL={setup.base_url}",
        f"OPENAI_API_KEY=${{{setup.key_variable}}}",
        f"OPENAI_MODEL_LIST={models}",
    )
    notes = (
        "In the page instead: Settings, AI Service Provider, OpenAI: this address as API proxy address, and the key.",
        "When the browser calls by itself (client request mode), add LobeHub's origin to `gateway.cors_origins`.",
        _CONTAINER_NOTE,
    )
    return Guide("LobeHub", (Block("environment of the LobeHub server (.env)", "dotenv", "\n".join(lines)),), notes)


def _openwebui(setup: Setup) -> Guide:
    lines = (
        f"OPENAI_API_BASE_URL={setup.base_url}",
        f"OPENAI_API_KEY=${{{setup.key_variable}}}",
        f"DEFAULT_MODELS={setup.model}",
        "ENABLE_OLLAMA_API=false",
        "ENABLE_FORWARD_USER_INFO_HEADERS=true",
    )
    notes = (
        "The last line sends who is asking, so that `sekisho usage --by user` tells usage per person.",
        "Put the lines into openwebui.env, then: set -a; . ./openwebui.env; set +a; open-webui serve. "
        "`docker run --env-file` does not fill ${…} in: give the key with -e OPENAI_API_KEY there.",
        "Open WebUI 0.12 offers a model 36 tools of its own with each message, about 4,700 tokens: use a context of "
        '8,192 or more, or add DEFAULT_MODEL_PARAMS=\'{"function_calling":"legacy"}\'.',
        "Open WebUI keeps these in its database after the first start; later: Admin Panel, Settings, Connections.",
        _CONTAINER_NOTE,
    )
    return Guide(
        "Open WebUI", (Block("environment of the Open WebUI server (.env)", "dotenv", "\n".join(lines)),), notes
    )


def _vscode(setup: Setup) -> Guide:
    lines = ["name: Sekisho", "version: 1.0.0", "schema: v1", "models:"]
    for name in setup.all_models:
        lines += [
            f"  - name: {_yaml_text(name)}",
            "    provider: openai",
            f"    model: {_yaml_text(name)}",
            f"    apiBase: {_yaml_text(setup.base_url)}",
            f"    apiKey: ${{{{ secrets.{setup.key_variable} }}}}",
            "    roles: [chat, edit, apply]",
        ]
    secret = f"{setup.key_variable}=…"
    cline = "\n".join(
        (
            "API Provider: OpenAI Compatible",
            f"Base URL: {setup.base_url}",
            f"API Key: the value of {setup.key_variable}",
            f"Model ID: {setup.model}",
        )
    )
    return Guide(
        "VS Code (Continue, Cline)",
        (
            Block("Continue: ~/.continue/config.yaml", "yaml", "\n".join(lines)),
            Block("Continue: ~/.continue/.env", "dotenv", secret),
            Block("Cline: settings page", "text", cline),
        ),
    )


_CONTAINER_NOTE = (
    "In a container, 127.0.0.1 is the container itself: start with `sekisho up --host 0.0.0.0` and write "
    "the machine's own address (host.docker.internal with Docker Desktop)."
)


def _export(setup: Setup) -> Block:
    return Block("shell", "sh", f"export {setup.key_variable}=…    # the key from `sekisho key create`")


def _toml_text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # TOML knows JSON's escapes, but not its surrogate pairs


def _yaml_text(text: str) -> str:
    return yaml.safe_dump(text, allow_unicode=True, default_style='"', width=1_000_000).rstrip("\n")


def _powershell_text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


CLIENTS: dict[str, Callable[[Setup], Guide]] = {
    "codex": _codex,
    "lobehub": _lobehub,
    "openwebui": _openwebui,
    "vscode": _vscode,
    "curl": _curl,
    "powershell": _powershell,
}


def guide(client: str, setup: Setup) -> Guide:
    """Raises KeyError for a client that is not in CLIENTS."""
    return CLIENTS[client](setup)
