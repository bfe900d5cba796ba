"""JSON Schemas of the request bodies and queries, for the OpenAPI document.

They show the common part of each protocol; the codecs in `wire` are what is enforced.
"""

from typing import Any

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_BOOL: Schema = {"type": "boolean"}
_COUNT: Schema = {"type": "integer", "minimum": 1, "maximum": 65536}
_MODEL: Schema = {"type": "string", "minLength": 1}
_NUMBER: Schema = {"type": "integer", "minimum": 1}
_UNIT: Schema = {"type": "number", "minimum": 0, "maximum": 1}
_TEMPERATURE: Schema = {"type": "number", "minimum": 0, "maximum": 2}
_SEED: Schema = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
_STOP: Schema = {"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "maxItems": 4}]}
_JSON_SCHEMA: Schema = {"type": "object"}


def _object(required: list[str], **properties: Schema) -> Schema:
    return {"type": "object", "required": required, "properties": properties}


def _array(items: Schema) -> Schema:
    return {"type": "array", "items": items, "minItems": 1}


_TEXT_PART = _object(["type", "text"], type={"const": "text"}, text=_TEXT)
_FUNCTION = _object(
    ["name"], name={"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,64}$"}, description=_TEXT, parameters=_JSON_SCHEMA
)
_CHAT_MESSAGE = _object(
    ["role", "content"],
    role={"enum": ["system", "developer", "user", "assistant"]},
    content={"anyOf": [_TEXT, _array(_TEXT_PART)]},
)
_CHAT = _object(
    ["model", "messages"],
    model=_MODEL,
    messages=_array(_CHAT_MESSAGE),
    stream=_BOOL,
    stream_options=_object([], include_usage=_BOOL),
    max_tokens=_COUNT,
    max_completion_tokens=_COUNT,
    temperature=_TEMPERATURE,
    top_p=_UNIT,
    stop=_STOP,
    seed=_SEED,
    n={"type": "integer", "minimum": 1, "maximum": 4},
    tools=_array(_object(["type", "function"], type={"const": "function"}, function=_FUNCTION)),
    tool_choice={"enum": ["auto", "none", "required"]},
    response_format={"anyOf": [_object(["type"], type={"enum": ["text", "json_object"]})]},
    logprobs=_BOOL,
    user=_TEXT,
)
_COMPLETIONS = _object(
    ["model", "prompt"],
    model=_MODEL,
    prompt={"anyOf": [_TEXT, _array(_TEXT)]},
    stream=_BOOL,
    max_tokens=_COUNT,
    temperature=_TEMPERATURE,
    top_p=_UNIT,
    stop=_STOP,
    seed=_SEED,
    echo=_BOOL,
    suffix=_TEXT,
)
_RESPONSES = _object(
    ["model", "input"],
    model=_MODEL,
    input={
        "anyOf": [
            _TEXT,
            _array(
                _object(
                    ["role", "content"],
                    type={"const": "message"},
                    role={"enum": ["system", "developer", "user", "assistant"]},
                    content=_TEXT,
                )
            ),
        ]
    },
    instructions=_TEXT,
    stream=_BOOL,
    store=_BOOL,
    previous_response_id=_TEXT,
    max_output_tokens=_COUNT,
    temperature=_TEMPERATURE,
    top_p=_UNIT,
    tools=_array(_object(["type", "name"], type={"const": "function"}, **_FUNCTION["properties"])),
    metadata={"type": "object", "additionalProperties": _TEXT},
)
_MESSAGES_COMMON: dict[str, Schema] = {
    "model": _MODEL,
    "system": _TEXT,
    "messages": _array(
        _object(
            ["role", "content"], role={"enum": ["user", "assistant"]}, content={"anyOf": [_TEXT, _array(_TEXT_PART)]}
        )
    ),
    "tools": _array(
        _object(
            ["name", "input_schema"],
            name=_FUNCTION["properties"]["name"],
            description=_TEXT,
            input_schema=_object(["type"], type={"const": "object"}),
        )
    ),
}
_MESSAGES = _object(
    ["model", "messages", "max_tokens"],
    **_MESSAGES_COMMON,
    max_tokens=_COUNT,
    stream=_BOOL,
    temperature=_UNIT,
    top_p=_UNIT,
    stop_sequences=_array(_TEXT),
)
_EMBEDDINGS = _object(
    ["model", "input"],
    model=_MODEL,
    input={"anyOf": [_TEXT, _array(_TEXT)]},
    encoding_format={"enum": ["float", "base64"]},
    user=_TEXT,
)
_OLLAMA_OPTIONS = _object([], temperature=_TEMPERATURE, num_predict=_COUNT, top_p=_UNIT, seed=_SEED)

_ACTIONS = ["approve", "answer", "deny"]
_WORDS: Schema = {"anyOf": [_TEXT, {"type": "null"}]}
_DECISION: dict[str, Schema] = {"action": {"enum": _ACTIONS}, "answer": _WORDS, "reason": _WORDS}

BODIES: dict[str, Schema] = {
    "/v1/chat/completions": _CHAT,
    "/v1/think": _CHAT,
    "/v1/completions": _COMPLETIONS,
    "/v1/responses": _RESPONSES,
    "/v1/messages": _MESSAGES,
    "/v1/messages/count_tokens": _object(["model", "messages"], **_MESSAGES_COMMON),
    "/v1/embeddings": _EMBEDDINGS,
    "/api/chat": _object(
        ["model"],
        model=_MODEL,
        messages={
            "type": "array",
            "items": _object(["role", "content"], role={"enum": ["system", "user", "assistant"]}, content=_TEXT),
        },
        stream=_BOOL,
        options=_OLLAMA_OPTIONS,
    ),
    "/api/generate": _object(
        ["model"], model=_MODEL, prompt=_TEXT, system=_TEXT, stream=_BOOL, options=_OLLAMA_OPTIONS
    ),
    "/api/embed": _object(["model"], model=_MODEL, input={"anyOf": [_TEXT, _array(_TEXT)]}),
    "/api/embeddings": _object(["model"], model=_MODEL, prompt=_TEXT),
    "/api/show": _object(["model"], model=_MODEL),
    "/v1/escalations/{ticket_id}/decision": {**_object(["action"], **_DECISION), "additionalProperties": False},
    "/escalation/{ticket_id}": {
        **_object(["token"], token=_TEXT, **{**_DECISION, "action": {"enum": ["look", *_ACTIONS]}}),
        "additionalProperties": False,
    },
    "/internal/engines/move": _object(
        ["model", "number", "url", "config"], model=_MODEL, number=_NUMBER, url=_TEXT, config={"type": "object"}
    ),
    "/internal/engines/hold": _object(
        ["model", "number", "for_s"], model=_MODEL, number=_NUMBER, for_s={"type": "number", "minimum": 0}
    ),
}

QUERIES: dict[tuple[str, str], list[Schema]] = {
    ("GET", "/internal/control/feed"): [
        {"name": "after", "in": "query", "schema": {"type": "integer", "minimum": 0}},
        {"name": "start", "in": "query", "schema": _TEXT},
        {"name": "wait_s", "in": "query", "schema": {"type": "number", "minimum": 0, "maximum": 30}},
    ],
    ("GET", "/v1/escalations"): [
        {
            "name": "state",
            "in": "query",
            "schema": {"enum": ["pending", "approved", "answered", "denied", "expired", "abandoned"]},
        },
        {"name": "after", "in": "query", "schema": _TEXT},
    ],
    ("GET", "/v1/responses/{response_id}/input_items"): [
        {"name": "after", "in": "query", "schema": _TEXT},
        {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 100}},
        {"name": "order", "in": "query", "schema": {"enum": ["asc", "desc"]}},
    ],
}
