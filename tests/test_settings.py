"""sekisho.yaml is read strictly, told about with places, and written without loss."""

from pathlib import Path
from typing import Any

import hypothesis
import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sekisho.engines.config import ModelConfig
from sekisho.ops.home import Home
from sekisho.settings import VERSION, Settings, SettingsError, add_model, default_text, load, load_text, write_text
from sekisho.settings.document import SettingsProblem, read_document
from sekisho.settings.loading import migrate

unhurried = hypothesis.settings(deadline=None, max_examples=60)


def problems(text: str) -> list[SettingsProblem]:
    with pytest.raises(SettingsError) as caught:
        load_text(text)
    return list(caught.value.problems)


def only(text: str) -> SettingsProblem:
    found = problems(text)
    assert len(found) == 1, [str(problem) for problem in found]
    return found[0]


def test_no_file_is_the_defaults(tmp_path: Path) -> None:
    """Without a file, and with an empty one, the built-in model stands behind the default address."""
    settings = load(Home(tmp_path), {})
    assert settings == Settings() == load_text("") == load_text("# nothing\n")
    assert [(model.name, model.path) for model in settings.models] == [("sekisho-mini", "builtin")]


def test_template_says_the_defaults() -> None:
    """The commented file that `config init` writes means the same as no file."""
    assert load_text(default_text()) == Settings()


def test_template_names_every_setting() -> None:
    """Whoever reads the template has seen every setting that there is."""
    blocks = (Settings().gateway, Settings().store, Settings().logs, Settings().guard, Settings().audit)
    structs: list[type[msgspec.Struct]] = [Settings, ModelConfig, *map(type, blocks)]
    for struct in structs:
        for field in msgspec.structs.fields(struct):
            assert f"{field.name}:" in default_text(), f"{struct.__name__}.{field.name}"


def test_all_fields_arrive() -> None:
    """Values of every kind come through, whole numbers for seconds too."""
    settings = load_text(
        "version: 1\n"
        "gateway: {port: 8000, allow_networks: [10.0.0.0/8, '::1/128'], queue_timeout_s: 3, currency: JPY,\n"
        "          prices: {m: {input_per_million: 10}}}\n"
        "store: {url: postgresql://me@db/sekisho, responses_ttl_days: 7}\n"
        "models:\n"
        "- {name: m, path: /m.gguf, context: 8192, kv_type_k: q8_0, options: {n_batch: 256}}\n"
        "- {name: far, engine: openai_http, url: 'http://127.0.0.1:1234/v1', api_key_env: FAR_KEY}\n"
        "default_model: fast\n"
        "aliases: {fast: m}\n"
    )
    assert settings.gateway.port == 8000
    assert settings.gateway.queue_timeout_s == 3.0
    assert settings.gateway.prices["m"].input_per_million == 10.0
    assert settings.store.responses_ttl_days == 7
    assert settings.models[0].options == {"n_batch": 256}
    assert settings.model("fast") is settings.models[0]
    assert settings.model("nobody") is None


@pytest.mark.parametrize(
    ("text", "line", "column", "path", "words"),
    [
        ("gateway:\n  prot: 1\n", 2, 3, "gateway.prot", "`port`"),
        ("gatway: {}\n", 1, 1, "gatway", "`gateway`"),
        ("gateway:\n  port: ten\n", 2, 9, "gateway.port", "whole number"),
        ("gateway:\n  port: yes\n", 2, 9, "gateway.port", "got true"),
        ("gateway:\n  port: 70000\n", 2, 9, "gateway.port", "at most 65535"),
        ("gateway:\n  host: 127\n", 2, 9, "gateway.host", "quotes"),
        ("gateway:\n  port: 1\n  port: 2\n", 3, 3, "gateway.port", "first in line 2"),
        ("gateway:\n  queue_timeout_s: -1\n", 2, 20, "gateway.queue_timeout_s", "above 0"),
        ("gateway:\n  queue_timeout_s: .nan\n", 2, 20, "gateway.queue_timeout_s", "ordinary number"),
        ("gateway:\n  allow_networks: [10.1.2.3/8]\n", 2, 20, "gateway.allow_networks[0]", "10.0.0.0/8"),
        ("gateway:\n  trusted_proxies: [home]\n", 2, 21, "gateway.trusted_proxies[0]", "192.168.1.0/24"),
        ("gateway:\n  allow_networks: 10.0.0.0/8\n", 2, 19, "gateway.allow_networks", "a list"),
        ("gateway:\n  currency: dollars\n", 2, 13, "gateway.currency", "USD"),
        ("gateway:\n  cors_origins: ['http://a/b']\n", 2, 18, "gateway.cors_origins[0]", "origin"),
        ("gateway:\n  prices: {other: {}}\n", 2, 12, "gateway.prices.other", "no model 'other'"),
        ("gateway: 5\n", 1, 10, "gateway", "block of settings"),
        ("store:\n  url: mysql://a/b\n", 2, 8, "store.url", "postgresql://"),
        ("store:\n  responses_ttl_days: 0\n", 2, 23, "store.responses_ttl_days", "above 0"),
        ("logs:\n  max_bytes: 1000\n", 2, 14, "logs.max_bytes", "at least 100000"),
        ("logs:\n  keep: -1\n", 2, 9, "logs.keep", "at least 0"),
        ("logs:\n  daily: soon\n", 2, 10, "logs.daily", "true or false"),
        ("models: []\n", 1, 9, "models", "no model"),
        ("models:\n- path: builtin\n", 2, 3, "models[0]", "`name` is missing"),
        ("models:\n- name: m\n", 2, 3, "models[0]", "`path` is missing"),
        ("models:\n- {name: m, path: builtin, context: 0}\n", 2, 37, "models[0].context", "at least 1"),
        ("models:\n- {name: m, engine: lama_cpp}\n", 2, 21, "models[0].engine", "`llama_cpp`"),
        ("models:\n- {name: 'a b', path: builtin}\n", 2, 10, "models[0].name", "without spaces"),
        ("models:\n- {name: m, engine: openai_http}\n", 2, 3, "models[0]", "`url` is missing"),
        ("models:\n- {name: m, engine: openai_http, url: 'http://a:1/'}\n", 2, 39, "models[0].url", "http://a:1/v1"),
        ("models:\n- {name: m, engine: openai_http, url: 'ftp://a/v1'}\n", 2, 39, "models[0].url", "web address"),
        ("models:\n- {name: m, path: builtin, kv_type_k: q9}\n", 2, 39, "models[0].kv_type_k", "one of"),
        ("models:\n- {name: m, path: x, engine: torch, kv: 5}\n", 2, 41, "models[0].kv", "`name: value` lines"),
        ("models:\n- {name: m, path: x, engine: torch, kv: {budget: 7}}\n", 2, 50, "models[0].kv.budget", "above 0"),
        ("models:\n- {name: m, path: x, engine: torch, kv: {mode: fast}}\n", 2, 48, "models[0].kv.mode", "dynamic"),
        ("models:\n- {name: m, path: x, engine: torch, kv: {sink: 1}}\n", 2, 48, "models[0].kv.sink", "sinks"),
        ("models:\n- &m {name: m, path: builtin}\n- *m\n", 2, 13, "models[1].name", "already"),
        ("aliases: {a: nobody}\n", 1, 14, "aliases.a", "no model 'nobody'"),
        ("aliases: {sekisho-mini: sekisho-mini}\n", 1, 11, "aliases.sekisho-mini", "is the name"),
        ("default_model: sekisho-mimi\n", 1, 16, "default_model", "`sekisho-mini`"),
        ("version: 99\n", 1, 10, "version", "newer Sekisho"),
        ("version: 0\n", 1, 10, "version", "no version 0"),
        ("version: one\n", 1, 10, "version", "whole number"),
        ("- a\n", 1, 1, "", "top of the file"),
        ("a: [\n", 2, 1, "", "not valid YAML"),
        ("gateway:\n\tport: 1\n", 2, 1, "", "no tabs"),
        ("gateway:\n  ? [a]\n  : 1\n", 2, 5, "gateway.", "plain text"),
        ("a: !!python/object:os.system x\n", 1, 4, "a", "not supported"),
    ],
)
def test_each_problem_has_its_place(text: str, line: int, column: int, path: str, words: str) -> None:
    """What is wrong is told with line, column, path, and with what would be right."""
    found = problems(text)
    matching = [p for p in found if words in str(p)]
    assert matching, [str(problem) for problem in found]
    assert (matching[0].line, matching[0].column, matching[0].path) == (line, column, path)
    assert str(matching[0]).startswith(f"sekisho.yaml:{line}:{column}: ")


def test_all_problems_at_once() -> None:
    """One run tells everything that is wrong, from the top of the file to its end."""
    found = problems("gateway:\n  prot: 1\n  host: 5\nstore:\n  uri: x\n")
    assert [problem.line for problem in found] == [2, 3, 5]


@pytest.mark.parametrize(
    "text",
    [
        "gateway:\n  api_key: hunter2\n",
        "models:\n- {name: m, engine: openai_http, url: 'http://a/v1', api_key: hunter2}\n",
        "models:\n- {name: m, path: builtin, options: {hf_token: hunter2}}\n",
        "models:\n- {name: m, engine: openai_http, url: 'http://a/v1', api_key_env: sk-hunter2}\n",
        "models:\n- {name: m, engine: openai_http, url: 'http://u:hunter2@a/v1'}\n",
        "store:\n  url: postgresql://me:hunter2@db/x\n",
        "password: hunter2\n",
    ],
)
def test_secrets_are_refused_and_not_repeated(text: str) -> None:
    """A secret in the file is refused with advice where to put it, and does not come back in the message."""
    problem = only(text)
    assert "hunter2" not in str(problem)
    assert "environment" in str(problem)


def test_environment_lies_over_the_file(tmp_path: Path) -> None:
    """DATABASE_URL, SEKISHO_HOST and SEKISHO_PORT win over the file; a bad port is an error of its own."""
    home = Home(tmp_path)
    home.settings_file.write_text("gateway: {port: 1, host: 10.0.0.1}\n")
    environment = {"SEKISHO_PORT": "8080", "SEKISHO_HOST": "0.0.0.0", "DATABASE_URL": "postgresql://u:p@h/d"}
    settings = load(home, environment)
    assert (settings.gateway.port, settings.gateway.host) == (8080, "0.0.0.0")
    assert settings.store.url == "postgresql://u:p@h/d"
    for port in ("0", "x", "70000", "１"):
        with pytest.raises(SettingsError, match="SEKISHO_PORT"):
            load(home, {"SEKISHO_PORT": port})


def test_files_lie_beside_the_settings(tmp_path: Path) -> None:
    """A relative file is looked for beside sekisho.yaml, wherever the server starts from; ~ is the user's folder."""
    home = Home(tmp_path)
    home.settings_file.write_text(
        "models:\n- {name: a, path: models/a.gguf, mmproj: /abs/p.gguf, chat_template: ~/t.jinja}\n"
        "- {name: b, path: builtin}\n- {name: c, engine: openai_http, url: 'http://a/v1', api_key_file: key}\n"
    )
    first, second, third = load(home, {}).models
    assert (first.path, first.mmproj) == (str(tmp_path / "models/a.gguf"), "/abs/p.gguf")
    assert first.chat_template == str(Path.home() / "t.jinja")
    assert second.path == "builtin"
    assert third.api_key_file == str(tmp_path / "key")


def test_unreadable_files_are_settings_errors(tmp_path: Path) -> None:
    """A file in another encoding, or a folder in its place, is told as such."""
    home = Home(tmp_path)
    home.settings_file.write_bytes("gateway: # 関所\n".encode("shift-jis"))
    with pytest.raises(SettingsError, match="UTF-8"):
        load(home, {})
    home.settings_file.unlink()
    home.settings_file.mkdir()
    with pytest.raises(SettingsError, match="cannot be read"):
        load(home, {})


def test_bombs_are_refused() -> None:
    """Aliases that multiply, and endless nesting, end in an error instead of filling the memory."""
    bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    for number in range(1, 9):
        before = "a" if number == 1 else f"b{number - 1}"
        bomb += f"b{number}: &b{number} [{', '.join([f'*{before}'] * 10)}]\n"
    for text in (bomb, "a: " + "[" * 5000, "&a [*a]\n"):
        with pytest.raises(SettingsError):
            load_text(text)


def is_read_or_refused(text: str) -> bool:
    try:
        return isinstance(load_text(text), Settings)
    except SettingsError as error:
        return bool(error.problems)


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
top_keys = st.sampled_from(["version", "gateway", "store", "models", "default_model", "aliases", "other"])


@unhurried
@given(st.dictionaries(top_keys, json_like, max_size=4))
def test_any_yaml_is_settings_or_a_settings_error(value: dict[str, Any]) -> None:
    """Whatever a YAML file holds, reading it gives settings or a SettingsError."""
    text = yaml.safe_dump(value, allow_unicode=True)
    assert is_read_or_refused(text)


@unhurried
@given(st.text(max_size=60))
def test_any_text_is_settings_or_a_settings_error(text: str) -> None:
    """So does a file that is no YAML at all."""
    assert is_read_or_refused(text)


def test_migrations_run_in_order() -> None:
    """An older file is brought forward step by step in memory, and each change is told."""

    def rename(value: dict[str, Any]) -> list[str]:
        value["gateway"] = value.pop("server")
        return ["server is called gateway now"]

    def nothing(value: dict[str, Any]) -> list[str]:
        return []

    document = read_document("version: 1\nserver: {port: 3}\n", "sekisho.yaml")
    assert migrate(document, {1: rename, 2: nothing}, 3) == ["server is called gateway now"]
    assert document.value == {"version": 3, "gateway": {"port": 3}}
    current = read_document(f"version: {VERSION}\n", "sekisho.yaml")
    assert migrate(current, {}, VERSION) == []


LAYOUTS = [
    "",
    "# mine\n",
    "version: 1",
    default_text(),
    "models:\n- name: a\n  path: builtin\n",
    "models:\n- name: a   # first\n  path: builtin   # end of first\n\n# after\ngateway:\n  port: 1 # one\n",
    "models:\n    - name: a\n      path: builtin\n      options:\n        x: 1   # deep\n    # tail comment\n",
    "models: [{name: a, path: builtin}]  # flow\n# end",
    "models:\r\n- name: a\r\n  path: builtin\r\n# end\r\n",
    "models:\n- name: a\n  path: |-\n    builtin\naliases: {b: a}\n",
    "models:\n- name: a\n  path: builtin",
]


@pytest.mark.parametrize("text", LAYOUTS)
def test_added_model_leaves_every_line(text: str) -> None:
    """Adding a model changes the settings by that model alone, and keeps every line and comment as written."""
    model = ModelConfig(name="new: one".replace(": ", "-"), path="/models/# odd 'name'.gguf", context=8192)
    added = add_model(text, model)
    before, after = load_text(text), load_text(added)
    assert after == msgspec.structs.replace(before, models=(*before.models, model))
    if "[{" not in text:
        left = added.splitlines()
        for line in text.splitlines():
            left.remove(line)
        assert all(word in "\n".join(left) for word in ("name: new-one", "context: 8192"))
    else:
        assert "# flow" in added
    assert ("\r\n" in text) == ("\r\n" in added)


letters = st.characters(exclude_categories=("Cs", "Cc", "Zs", "Zl", "Zp", "Cn"))
names = st.text(letters, min_size=1, max_size=20).filter(lambda name: name not in ("a", "sekisho-mini"))


@unhurried
@given(st.sampled_from(LAYOUTS), names, st.text(st.characters(exclude_categories=("Cs",)), min_size=1))
def test_any_name_and_path_survive_the_way_through_the_file(text: str, name: str, path: str) -> None:
    """Whatever a model and its file are called, reading gives back what was added."""
    model = ModelConfig(name=name, path=path)
    assert load_text(add_model(text, model)).models[-1] == model


def test_adding_twice_is_refused() -> None:
    """A name that is there already is not added a second time; the built-in default can be replaced."""
    with pytest.raises(SettingsError, match="already"):
        add_model("models:\n- {name: a, path: builtin}\n", ModelConfig(name="a", path="/b.gguf"))
    replaced = load_text(add_model("", ModelConfig(name="sekisho-mini", path="builtin", slots=8)))
    assert [model.slots for model in replaced.models] == [8]


def test_broken_text_is_never_written(tmp_path: Path) -> None:
    """A file is replaced only by one that can be read."""
    path = tmp_path / "sekisho.yaml"
    write_text(path, "version: 1\n")
    with pytest.raises(SettingsError):
        write_text(path, "verson: 1\n")
    assert path.read_text() == "version: 1\n"


GUARD_FAULTS = [
    ("guard:\n  mode: strict\n", "guard.mode", "off, basic, production, emergency"),
    ("guard:\n  languages: [fr]\n", "guard.languages[0]", "cannot be judged here"),
    ("guard:\n  hold_back_chars: 2\n", "guard.hold_back_chars", "at least 16"),
    ("guard:\n  model: {model: judge, format: qwen3guard}\n", "guard.model.model", "there is no model 'judge'"),
    ("guard:\n  model: {model: sekisho-mini, format: qwen3guard, deadline_s: 9}\n", "guard.model.deadline_s", "below"),
    ("guard:\n  model: {model: sekisho-mini, format: best}\n", "guard.model.format", "one of"),
    ("guard:\n  model: {model: sekisho-mini, format: generic, max_chars: 3}\n", "guard.model", "64 or more"),
    ("guard:\n  escalation:\n    behaviour: {medcal: hold}\n", "guard.escalation.behaviour.medcal", "no such category"),
    ("guard:\n  escalation:\n    approvers:\n      a: {channels: [sales]}\n", "guard.escalation.approvers.a", ""),
    ("audit:\n  segment_mb: 0\n", "audit", "segment_mb"),
    ("audit:\n  anchor: {records: 0}\n", "audit.anchor", "at least 1"),
    ("audit:\n  anchor: {evry: 5}\n", "audit.anchor.evry", "unknown setting"),
]


@pytest.mark.parametrize(("text", "place", "words"), GUARD_FAULTS)
def test_faults_of_guard_and_book_are_told_with_their_place(text: str, place: str, words: str) -> None:
    """The blocks of the guard and of the book are as strict as the others, to their innermost line."""
    with pytest.raises(SettingsError) as caught:
        load_text(text)
    problem = caught.value.problems[0]
    assert problem.path.startswith(place)
    assert words in f"{problem.message} {problem.hint}"
    assert problem.line is not None
