"""Bodies that nobody should send: each protocol refuses them in its own words, and nobody pays for them."""

import json
from typing import TYPE_CHECKING, Any

import pytest
from hostile_harness import eventually, refused

if TYPE_CHECKING:
    from conftest import Target
from hostile_harness import BODIES, post, raw_with

GENERATING = ("chat", "completions", "responses", "messages", "ollama_chat", "ollama_generate")
every = pytest.mark.parametrize("protocol", BODIES)
generating = pytest.mark.parametrize("protocol", GENERATING)


@pytest.fixture(autouse=True)
def _nobody_pays(target: "Target") -> Any:
    """A refused request is not counted as completed."""
    before = target.completed()
    paid: list[int] = [0]
    target.paid = paid  # type: ignore[attr-defined]
    yield
    assert target.completed() == before + paid[0]


def accepted(target: "Target", answer: Any) -> None:
    """Checks that an answer is whole, and expects its usage."""
    assert answer.status_code == 200, answer.text[:500]
    target.paid[0] += 1  # type: ignore[attr-defined]


NOT_OBJECTS = [
    b"",
    b" ",
    b"{",
    b"}",
    b"null",
    b"true",
    b"7",
    b'"text"',
    b"[]",
    b"[{}]",
    b"{}",
    b"{} {}",
    b"{'model': 'fake'}",
    b'{"model": "fake",}',
    b"NaN",
    b"Infinity",
    b"\xff\xfe{\x00}\x00",
    b"\x00",
    b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03",
    b"model=fake&prompt=x",
    b"--x\r\nContent-Disposition: form-data\r\n\r\n1\r\n--x--",
]


@every
def test_what_is_no_json_object_is_refused(target: "Target", protocol: str) -> None:
    """Broken JSON, no body, scalars, arrays, forms, gzip: 400 each, in the protocol's shape."""
    for body in NOT_OBJECTS:
        refused(protocol, post(target, protocol, body), 400)


def _wrong_types(protocol: str) -> list[bytes]:
    """The good body with each of its fields in turn made every wrong type, and bad UTF-8 in each place."""
    bodies = []
    for name, value in BODIES[protocol][1].items():
        wrong = ["null", "true", "7.5", "[null]", '[{"a":[]}]', '{"a":1}', "[[[]]]", "NaN", "-Infinity", "1e400"]
        wrong += ["7"] if isinstance(value, str) else ['"text"']
        bodies += [raw_with(protocol, **{name: bad}) for bad in wrong]
        bodies.append(raw_with(protocol, **{name: '"\udcff"'.replace("\udcff", "BAD")}).replace(b"BAD", b"\xc3\x28"))
    return bodies


def _lenient(protocol: str, body: bytes) -> bool:
    """Wrong types that a protocol allows: Ollama's null is an absent field, and a prompt's absence loads the model;
    token numbers are a prompt too."""
    return protocol.startswith("ollama") and b":null" in body and b'"model":null' not in body


@every
def test_wrong_types_are_refused(target: "Target", protocol: str) -> None:
    """Each required field with each wrong type, NaN, an infinity, bad UTF-8: refused and never a 500."""
    for body in _wrong_types(protocol):
        answer = post(target, protocol, body)
        if not (_lenient(protocol, body) and answer.status_code == 200):
            refused(protocol, answer)


NUMBERS = ["NaN", "Infinity", "-Infinity", "1e400", '"1"', "[]", "{}", "true", "-1", "1e30", str(10**40), "0.5.5", "01"]
PLACES = [
    ("chat", "temperature", "{}"),
    ("chat", "max_tokens", "{}"),
    ("chat", "max_completion_tokens", "{}"),
    ("chat", "n", "{}"),
    ("chat", "logit_bias", '{{"1":{}}}'),
    ("completions", "temperature", "{}"),
    ("completions", "max_tokens", "{}"),
    ("completions", "prompt", "[[1,{}]]"),
    ("responses", "temperature", "{}"),
    ("responses", "max_output_tokens", "{}"),
    ("messages", "max_tokens", "{}"),
    ("messages", "temperature", "{}"),
    ("messages", "top_k", "{}"),
    *(("ollama_chat", "options", f'{{{{"{name}":{{}}}}}}') for name in ("num_predict", "top_k", "seed")),
    ("ollama_generate", "options", '{{"num_predict":{}}}'),
    ("embeddings", "dimensions", "{}"),
    ("embeddings", "input", "[[1,{}]]"),
]

# Where -1 means something: a bias, or no limit, as llama.cpp, LM Studio and Ollama write it.
NO_LIMIT = {("chat", "logit_bias"), ("chat", "max_tokens"), ("chat", "max_completion_tokens"),
            ("completions", "max_tokens"), ("ollama_chat", "options"), ("ollama_generate", "options")}  # fmt: skip


@pytest.mark.parametrize(("protocol", "field", "shape"), PLACES)
def test_impossible_numbers_are_refused(target: "Target", protocol: str, field: str, shape: str) -> None:
    """NaN, infinities, 1e400, negative and huge numbers, numbers as text: refused wherever a number stands."""
    for number in NUMBERS:
        if not (number == "-1" and (protocol, field) in NO_LIMIT):
            refused(protocol, post(target, protocol, raw_with(protocol, **{field: shape.format(number)})))


@pytest.mark.parametrize("number", ["1e400", str(10**30), "-" + str(10**30), "NaN", "1.5", '"x"', "[]", "null"])
@generating
def test_a_strange_seed_harms_nobody(target: "Target", protocol: str, number: str) -> None:
    """Any JSON as a seed or as metadata is taken or refused, but breaks nothing."""
    field = {"ollama_chat": "options", "ollama_generate": "options"}.get(protocol, "seed")
    raw = f'{{"seed":{number}}}' if field == "options" else number
    answer = post(target, protocol, raw_with(protocol, **{field: raw}, user=number))
    if answer.status_code == 200:
        accepted(target, answer)
    else:
        refused(protocol, answer)


DEEP = 10_000
DEEP_ARRAY = "[" * DEEP + "]" * DEEP
DEEP_OBJECT = '{"a":' * DEEP + "1" + "}" * DEEP
DEEP_SCHEMA = '{"type":"object","properties":{"a":' * DEEP + "{}" + "}}" * DEEP
DEEP_PLACES = [
    ("chat", "messages", "[{{'role':'user','content':{}}}]"),
    ("chat", "messages", "[{{'role':'user','content':[{{'type':'text','text':{}}}]}}]"),
    ("chat", "tools", "[{{'type':'function','function':{{'name':'f','parameters':{}}}}}]"),
    ("chat", "response_format", "{{'type':'json_schema','json_schema':{{'name':'x','schema':{}}}}}"),
    ("chat", "metadata", "{}"),
    ("chat", "no_such_field", "{}"),
    ("completions", "prompt", "{}"),
    ("completions", "no_such_field", "{}"),
    ("responses", "input", "{}"),
    ("responses", "input", "[{{'type':'message','role':'user','content':{}}}]"),
    ("responses", "input", "[{{'type':'no_such_item','x':{}}}]"),
    ("responses", "tools", "[{{'type':'function','name':'f','parameters':{}}}]"),
    ("responses", "text", "{{'format':{{'type':'json_schema','name':'x','schema':{}}}}}"),
    ("responses", "metadata", "{}"),
    ("responses", "metadata", "{{'a':{}}}"),
    ("messages", "messages", "[{{'role':'user','content':{}}}]"),
    (
        "messages",
        "messages",
        "[{{'role':'assistant','content':[{{'type':'tool_use','id':'a','name':'b','input':{}}}]}}]",
    ),
    ("messages", "tools", "[{{'name':'f','input_schema':{}}}]"),
    ("messages", "metadata", "{}"),
    ("messages", "system", "{}"),
    ("count_tokens", "messages", "{}"),
    ("embeddings", "input", "{}"),
    ("ollama_chat", "messages", "[{{'role':'user','content':{}}}]"),
    ("ollama_chat", "tools", "[{{'type':'function','function':{{'name':'f','parameters':{}}}}}]"),
    ("ollama_chat", "format", "{}"),
    ("ollama_chat", "options", "{}"),
    ("ollama_generate", "format", "{}"),
    ("ollama_generate", "context", "{}"),
    ("ollama_embed", "input", "{}"),
]


@pytest.mark.parametrize(("protocol", "field", "shape"), DEEP_PLACES)
def test_ten_thousand_levels_are_refused(target: "Target", protocol: str, field: str, shape: str) -> None:
    """Nesting that would break a recursive parser gets a 4xx wherever it stands."""
    for deep in (DEEP_ARRAY, DEEP_OBJECT, DEEP_SCHEMA):
        raw = shape.replace("'", '"').format(deep)
        refused(protocol, post(target, protocol, raw_with(protocol, **{field: raw})))


@pytest.mark.parametrize("levels", [30, 200, 500, 900, 990, 1000, 1024])
@pytest.mark.parametrize("protocol", ["chat", "responses", "messages", "ollama_chat"])
def test_depth_near_the_limit_is_taken_or_refused(target: "Target", protocol: str, levels: int) -> None:
    """A schema so deep that it can be read but perhaps not be written again is no reason for a 500."""
    schema = '{"type":"object","properties":{"a":' * (levels // 2) + "{}" + "}}" * (levels // 2)
    tool = {
        "responses": f'[{{"type":"function","name":"f","parameters":{schema}}}]',
        "messages": f'[{{"name":"f","input_schema":{schema}}}]',
    }.get(protocol, f'[{{"type":"function","function":{{"name":"f","parameters":{schema}}}}}]')
    answer = post(target, protocol, raw_with(protocol, tools=tool))
    if answer.status_code == 200:
        accepted(target, answer)
    else:
        refused(protocol, answer)


STRANGE_TEXTS = {
    "lone high surrogate": r'"a \ud800 b"',
    "lone low surrogate": r'"a \udc00 b"',
    "pair the wrong way round": r'"\udc00\ud800"',
    "half a pair at the end": r'"x\ud83d"',
    "NUL": r'"a \u0000 b"',
    "controls": r'"\u0001\u001b[31m\u007f\u0085\u2028\u2029"',
    "right to left": r'"\u202e\u2066abc"',
    "beyond the first plane": '"𝕳😀"',
    "byte order marks": '"\ufeff\ufffe"',
    "line ends": r'"a\r\nb\nc\rd"',
    "frames of our own": r'"\n\ndata: [DONE]\n\nevent: error\ndata: {}\n\n"',
}


@pytest.mark.parametrize("text", STRANGE_TEXTS.values(), ids=STRANGE_TEXTS)
@every
def test_strange_text_comes_back_or_is_refused(target: "Target", protocol: str, text: str) -> None:
    """Lone surrogates, NUL, controls and text that looks like our own frames: the same text back, or a 4xx."""
    field = next((name for name in ("messages", "prompt", "input") if name in BODIES[protocol][1]), "model")
    raw = f'[{{"role":"user","content":{text}}}]' if field == "messages" else text
    for stream in ("false", "true") if protocol in GENERATING else ("false",):
        more = {"stream": stream} if protocol in GENERATING else {}
        answer = post(target, protocol, raw_with(protocol, **{field: raw}, **more))
        if answer.status_code >= 400:
            refused(protocol, answer)
            continue
        assert answer.status_code == 200
        if protocol not in ("count_tokens", "ollama_show"):
            accepted(target, answer)
        if protocol == "chat" and stream == "false":
            assert answer.json()["choices"][0]["message"]["content"] == json.loads(text)
        answer.content.decode("utf-8")


@pytest.mark.parametrize(
    "name", ["fa\\u0000ke", "\\ud800", "a\\r\\nx-evil: 1", "../../etc/passwd", "", " ", "x" * 100_000]
)
@every
def test_a_strange_model_name_is_unknown(target: "Target", protocol: str, name: str) -> None:
    """A name with line ends, NUL, lone surrogates, 100,000 letters: 4xx, short, and no line of it in a header."""
    if name == "":
        return  # no name is the default model
    answer = post(target, protocol, raw_with(protocol, model=f'"{name}"'))
    refused(protocol, answer, 400, 404)
    assert "x-evil" not in answer.headers


@every
def test_an_unknown_model_is_404_and_says_so(target: "Target", protocol: str) -> None:
    """The name and the models that the key may use stand in the message."""
    answer = post(target, protocol, raw_with(protocol, model='"gpt-9"'))
    refused(protocol, answer, 404)
    assert "gpt-9" in answer.text
    assert "fake" in answer.text


@pytest.mark.parametrize("protocol", ["chat", "responses", "messages", "ollama_chat"])
def test_duplicate_keys_do_not_smuggle(target: "Target", protocol: str) -> None:
    """Of two equal keys one counts, and it is the one that is checked too."""
    good = json.dumps(BODIES[protocol][1])
    other = post(target, protocol, (good[:-1] + ',"model":"gpt-9"}').encode())
    assert other.status_code in (400, 404), other.text
    field = "input" if protocol == "responses" else "messages"
    refused(protocol, post(target, protocol, (good[:-1] + f',"{field}":7}}').encode()))


TOO_LONG = "word " * 5_000
LONG_PLACES = [
    ("chat", "messages", [{"role": "user", "content": TOO_LONG}]),
    ("completions", "prompt", TOO_LONG),
    ("responses", "input", TOO_LONG),
    ("messages", "messages", [{"role": "user", "content": TOO_LONG}]),
    ("ollama_chat", "messages", [{"role": "user", "content": TOO_LONG}]),
    ("ollama_generate", "prompt", TOO_LONG),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("protocol", "field", "value"), LONG_PLACES)
def test_too_long_a_prompt_is_told(target: "Target", protocol: str, field: str, value: Any, stream: bool) -> None:
    """`context_length_exceeded`, with its status also where a stream was asked for."""
    answer = post(target, protocol, {**BODIES[protocol][1], field: value, "stream": stream})
    body = refused(protocol, answer, 400)
    if not protocol.startswith("ollama"):
        assert body["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("protocol", "more", "param"),
    [
        ("chat", {"max_tokens": 4097}, "max_tokens"),
        ("chat", {"max_completion_tokens": 10**9}, "max_tokens"),
        ("completions", {"max_tokens": 4097}, "max_tokens"),
        ("responses", {"max_output_tokens": 4097}, "max_output_tokens"),
        ("messages", {"max_tokens": 4097}, "max_tokens"),
        ("ollama_chat", {"options": {"num_predict": 4097}}, "num_predict"),
        ("ollama_generate", {"options": {"num_predict": 4097}}, "num_predict"),
    ],
)
def test_more_output_than_the_context_holds_is_named(
    target: "Target", protocol: str, more: dict[str, Any], param: str
) -> None:
    """The parameter and the context's size stand in the answer."""
    answer = post(target, protocol, {**BODIES[protocol][1], **more})
    refused(protocol, answer, 400)
    assert param in answer.text
    assert "4096" in answer.text


@pytest.mark.parametrize(
    ("protocol", "more", "param"),
    [
        ("chat", {"audio": {"voice": "x", "format": "wav"}}, "audio"),
        ("chat", {"modalities": ["audio"]}, "modalities"),
        ("completions", {"best_of": 3}, "best_of"),
        ("responses", {"conversation": "conv_1"}, "conversation"),
        ("responses", {"prompt": {"id": "pmpt_1"}}, "prompt"),
        ("messages", {"mcp_servers": [{"type": "url", "url": "http://x", "name": "x"}]}, "mcp_servers"),
    ],
)
def test_an_unsupported_parameter_is_named(target: "Target", protocol: str, more: dict[str, Any], param: str) -> None:
    """What would change the answer and cannot be done is refused by name, not ignored."""
    answer = post(target, protocol, {**BODIES[protocol][1], **more})
    refused(protocol, answer, 400)
    assert param in answer.text


# --- responses: what is somebody else's is not there ------------------------------------------------------------------


def test_an_unknown_previous_response_is_404(target: "Target") -> None:
    """Never ignored, whatever the id looks like."""
    for given in ("resp_nope", "", "x" * 10_000, "resp_\x00", "../1", "' OR 1=1 --"):
        answer = post(target, "responses", {**BODIES["responses"][1], "previous_response_id": given})
        body = refused("responses", answer, 400, 404)
        assert body["error"]["param"] == "previous_response_id"


def test_another_keys_response_does_not_exist(target: "Target") -> None:
    """GET, DELETE, cancel, input_items and previous_response_id answer for it as for an id that never was."""
    mine = target.colleague.post("/v1/responses", json=BODIES["responses"][1])
    accepted(target, mine)
    theirs, never = mine.json()["id"], "resp_" + "0" * 26

    def told(method: str, path: str, response_id: str) -> tuple[int, str]:
        answer = target.client.request(method, path.format(response_id))
        refused("responses", answer, 404)
        return answer.status_code, answer.json()["error"]["message"].replace(response_id, "ID")

    for method, path in (
        ("GET", "/v1/responses/{}"),
        ("GET", "/v1/responses/{}/input_items"),
        ("POST", "/v1/responses/{}/cancel"),
        ("DELETE", "/v1/responses/{}"),
    ):
        assert told(method, path, theirs) == told(method, path, never)
    asked = [
        post(target, "responses", {**BODIES["responses"][1], "previous_response_id": response_id})
        for response_id in (theirs, never)
    ]
    assert [answer.status_code for answer in asked] == [404, 404]
    words = [answer.json()["error"]["message"] for answer in asked]
    assert words[0].replace(theirs, "ID") == words[1].replace(never, "ID")
    assert target.colleague.get(f"/v1/responses/{theirs}").status_code == 200


def test_a_running_response_of_another_key_cannot_be_cancelled(target: "Target") -> None:
    """It runs on, and the attacker learns nothing."""
    body = {"model": "fake", "input": "tokens:3 pace:0.3", "background": True}
    started = target.colleague.post("/v1/responses", json=body).json()
    refused("responses", target.client.post(f"/v1/responses/{started['id']}/cancel"), 404)

    def done() -> bool:
        return bool(target.colleague.get(f"/v1/responses/{started['id']}").json()["status"] == "completed")

    assert eventually(done)
    target.paid[0] += 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=x", "limit=99999999999999999999", "order=%00", "order=up", "limit=%FF", "limit=٣"]
)
def test_bad_queries_are_refused(target: "Target", query: str) -> None:
    """Limits that are no numbers, unknown orders, bytes that are no text: 400."""
    mine = target.client.post("/v1/responses", json=BODIES["responses"][1])
    accepted(target, mine)
    answer = target.client.get(f"/v1/responses/{mine.json()['id']}/input_items?{query}")
    refused("responses", answer, 400)
