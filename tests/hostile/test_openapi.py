"""The OpenAPI document is true: valid, complete, and no request that it allows, or nearly allows, breaks the server."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, status_code_conformance
from schemathesis.specs.openapi.definitions import OPENAPI_31

from sekisho.gateway.routes import ROUTES

if TYPE_CHECKING:
    from conftest import Target

PAGES = [("GET", "/"), ("GET", "/static/{name}"), ("GET", "/escalation/{ticket_id}")]
OPERATIONS = [(route.method, route.path) for route in ROUTES] + PAGES
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance]


@pytest.fixture(scope="module")
def document(target: "Target") -> dict[str, Any]:
    found: dict[str, Any] = target.client.get("/openapi.json").json()
    return found


@pytest.fixture(scope="module")
def session(target: "Target") -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.headers["authorization"] = f"Bearer {target.key}"
        yield session


def test_the_document_is_valid(document: dict[str, Any]) -> None:
    """OpenAPI 3.1 by the specification's own schema, each schema in it JSON Schema 2020-12, each operation's id its
    own, each path parameter declared."""
    assert document["openapi"].startswith("3.1")
    Draft202012Validator(OPENAPI_31).validate(document)
    ids = []
    for path, methods in document["paths"].items():
        for operation in methods.values():
            ids.append(operation["operationId"])
            declared = {item["name"] for item in operation.get("parameters", []) if item["in"] == "path"}
            assert declared == set(re.findall(r"{(\w+)}", path)), path
            for parameter in operation.get("parameters", []):
                Draft202012Validator.check_schema(parameter["schema"])
            for media in operation.get("requestBody", {}).get("content", {}).values():
                Draft202012Validator.check_schema(media["schema"])
    assert len(ids) == len(set(ids))


def test_the_document_names_every_route(document: dict[str, Any]) -> None:
    """Exactly the table of routes and the pages, with a summary and a body for each POST that takes one."""
    named = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert named == set(OPERATIONS)
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"], path
            assert (method == "post" and not path.endswith("/cancel")) == ("requestBody" in operation), path


OPERATION = pytest.mark.parametrize(("method", "path"), OPERATIONS)
MODE = pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["valid", "invalid"])


def attack_by_document(
    target: "Target", document: dict[str, Any], session: requests.Session, operation_key: tuple[str, str],
    mode: GenerationMode, examples: int,
) -> None:  # fmt: skip
    """Sends what the schema gives, or what just violates it, and checks the answers against the document."""
    method, path = operation_key
    operation = schemathesis.openapi.from_dict(document)[path][method]
    if mode is GenerationMode.NEGATIVE and not (operation.body or operation.query):
        return  # there is nothing to violate

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def attack(case: Case) -> None:
        case.call_and_validate(base_url=target.process.url, session=session, checks=CHECKS, timeout=60)

    attack()


@OPERATION
@MODE
def test_no_request_by_the_document_breaks_the_server(
    target: "Target", document: dict[str, Any], session: requests.Session, method: str, path: str, mode: GenerationMode
) -> None:
    """Whatever the schema gives, and whatever just violates it: a documented status and content type, never 500."""
    attack_by_document(target, document, session, (method, path), mode, 5)


@pytest.mark.slow
@OPERATION
@MODE
def test_many_requests_by_the_document_break_nothing(
    target: "Target", document: dict[str, Any], session: requests.Session, method: str, path: str, mode: GenerationMode
) -> None:
    """The same with more of them."""
    attack_by_document(target, document, session, (method, path), mode, 60)


def test_any_json_as_any_field(target: "Target") -> None:
    """Random JSON in place of each field of a chat request never makes a 5xx."""
    values = st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=6,
    )
    good: dict[str, Any] = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
    fields = st.sampled_from(
        ["messages", "tools", "tool_choice", "response_format", "stream", "stream_options", "stop", "logit_bias", "n",
         "metadata", "reasoning_effort", "user", "parallel_tool_calls", "top_logprobs", "seed", "functions"]
    )  # fmt: skip

    @given(field=fields, value=values)
    @settings(max_examples=100, derandomize=True, database=None, deadline=None)
    def attack(field: str, value: Any) -> None:
        answer = target.client.post("/v1/chat/completions", json={**good, field: value})
        assert answer.status_code < 500, (field, value, answer.text)

    attack()
