"""Embeddings in both directions, and the model objects."""

import json
import struct
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import CreateEmbeddingResponse, Model

from sekisho.core.errors import EngineFailed, InvalidRequest, UnsupportedParameter
from sekisho.core.events import Usage
from sekisho.core.turn import EmbedRequest
from sekisho.wire import embeddings, models
from sekisho.wire.models import ModelView

FLOATS = st.floats(allow_nan=False, allow_infinity=False, width=32)


def decode(**fields: Any) -> EmbedRequest:
    return embeddings.decode(json.dumps({"model": "m", "input": "a", **fields}).encode(), "emb_1")


def test_inputs_of_every_form() -> None:
    """One text, texts, tokens, lists of tokens, in their order."""
    assert decode().inputs == ("a",)
    assert decode(input=["a", "b"]).inputs == ("a", "b")
    assert decode(input=[1, 2]).inputs == ((1, 2),)
    assert decode(input=[[1], [2]]).inputs == ((1,), (2,))
    asked = decode(dimensions=3, encoding_format="base64", user="u")
    assert (asked.dimensions, asked.encoding, asked.user) == (3, "base64", "u")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": ["a", 1]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": {}}, "input"),
        ({"dimensions": 0}, "dimensions"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"colour": 1}, "colour"),
        ({"model": None}, "model"),
    ],
)
def test_bad_requests_are_named(fields: dict[str, Any], param: str) -> None:
    """What is wrong is told by the parameter's path."""
    with pytest.raises(InvalidRequest) as caught:
        decode(**fields)
    assert caught.value.param == param


@settings(deadline=None)
@given(st.lists(st.lists(FLOATS, min_size=2, max_size=2), min_size=1, max_size=4))
def test_an_engines_vectors_reach_the_client(vectors: list[list[float]]) -> None:
    """Floats and base64 both bring the engine's numbers to the official SDK's type, each at its place, even when the
    engine answers in another order."""
    asked = decode(input=["x"] * len(vectors), dimensions=2)
    data = [{"index": index, "embedding": vector} for index, vector in enumerate(vectors)]
    body = json.dumps({"data": data[::-1], "usage": {"prompt_tokens": 5}}).encode()
    read, usage = embeddings.decode_vectors(body, asked)
    assert read == vectors
    assert usage == Usage(5, 0)
    answer = CreateEmbeddingResponse.model_validate_json(embeddings.encode_result(asked, read, usage))
    assert [one.embedding for one in answer.data] == vectors
    assert [one.index for one in answer.data] == list(range(len(vectors)))
    assert (answer.model, answer.usage.prompt_tokens, answer.usage.total_tokens) == ("m", 5, 5)


@settings(deadline=None)
@given(st.lists(FLOATS, min_size=1, max_size=5))
def test_the_sdk_reads_base64(vector: list[float]) -> None:
    """The official client asks for base64 by itself and unpacks the same 32-bit floats."""

    def handle(request: httpx2.Request) -> httpx2.Response:
        asked = embeddings.decode(request.content, "emb_1")
        assert asked.encoding == "base64"
        return httpx2.Response(200, content=embeddings.encode_result(asked, [vector], Usage(1, 0)))

    transport = httpx2.Client(transport=httpx2.MockTransport(handle))
    with openai.OpenAI(api_key="k", base_url="http://test/v1", http_client=transport) as client:
        [read] = client.embeddings.create(model="m", input="a").data
    assert struct.pack(f"<{len(vector)}f", *read.embedding) == struct.pack(f"<{len(vector)}f", *vector)


def test_the_request_to_an_engine() -> None:
    """Floats are asked for whatever the client wants to read; one input goes out alone."""
    asked = decode(input=[[1, 2], [3]], dimensions=4, encoding_format="base64")
    assert json.loads(embeddings.encode_request(asked, model="up")) == {
        "model": "up",
        "input": [[1, 2], [3]],
        "encoding_format": "float",
        "dimensions": 4,
    }
    assert json.loads(embeddings.encode_request(decode(), model="up"))["input"] == "a"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b'{"data":[]}',
        b'{"data":[{"embedding":[1]},{"embedding":[2]}]}',
        b'{"data":[{"embedding":[null]}]}',
        b'{"data":[{"embedding":[1],"index":1}]}',
        b'{"data":[{"embedding":"AAAA"}]}',
    ],
)
def test_an_answer_that_is_not_whole_is_a_failure(body: bytes) -> None:
    """One vector of numbers for each input, or none at all."""
    with pytest.raises(EngineFailed):
        embeddings.decode_vectors(body, decode())


def test_dimensions_that_the_engine_passed_over_are_told() -> None:
    """A vector of another length than the client asked for is not handed out as if it were right."""
    with pytest.raises(UnsupportedParameter) as caught:
        embeddings.decode_vectors(b'{"data":[{"embedding":[1,2,3]}]}', decode(dimensions=2))
    assert caught.value.param == "dimensions"
    assert embeddings.decode_vectors(b'{"data":[{"embedding":[1,2]}]}', decode(dimensions=2)) == ([[1.0, 2.0]], None)


def test_model_objects_fit_the_sdk() -> None:
    """A model alone and in the list; the context length is our one extra field, left out where it is not known."""
    known = ModelView("a", 1_790_000_000, context_length=4096)
    unknown = ModelView("b", 1_790_000_000, "acme")
    one = Model.model_validate_json(models.encode_model(known), strict=True)
    assert one.model_extra == {"context_length": 4096}
    listed = json.loads(models.encode_list([known, unknown]))
    assert listed["object"] == "list"
    read = [Model.model_validate(entry, strict=True) for entry in listed["data"]]
    assert [(model.id, model.owned_by) for model in read] == [("a", models.OWNER), ("b", "acme")]
    assert not read[1].model_extra
