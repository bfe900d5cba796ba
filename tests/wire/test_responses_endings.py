"""How items of a stream of the Responses protocol interleave, and how a turn ends, by example."""

import json
from typing import Any

import pytest
from responses_harness import BROKEN, check_order, make, parse, run

from sekisho.core.events import Event, Failed, Finished, ReasoningDelta, TextDelta, ToolCallDelta

# --- interleaving, by example ---


def kinds(stream: bytes, skip: str = "response.") -> list[str]:
    return [event["type"].removeprefix(skip) for event in parse(stream)]


def test_text_after_a_whole_call_is_written_at_once() -> None:
    """A call whose arguments are whole is finished as soon as something else begins: later text does not wait."""
    encoder = make()
    encoder.start()
    encoder.feed([ToolCallDelta(0, "call_a", "look", '{"a":'), ToolCallDelta(0, arguments="1}")])
    assert kinds(encoder.feed([TextDelta("now")])) == [
        "function_call_arguments.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
    ]


def test_what_overtakes_an_open_call_waits_for_it() -> None:
    """Two calls interleaved by index, and text among them: the second call and the text come after the first is
    done, and come before the end of the turn."""
    encoder = make()
    encoder.start()
    first = [ToolCallDelta(0, "call_a", "look", '{"a":'), ToolCallDelta(1, "call_b", "find", '{"b'), TextDelta("t")]
    assert kinds(encoder.feed(first)) == ["output_item.added", "function_call_arguments.delta"]
    assert encoder.feed([ToolCallDelta(1, arguments='":2}')]) == b""
    released = parse(encoder.feed([ToolCallDelta(0, arguments="1}")]))
    assert [event["type"] for event in released].count("response.output_item.done") == 2
    assert released[-1]["delta"] == "t"
    encoder.feed([Finished("tool_calls")])
    assert [item["type"] for item in encoder.output_items()] == ["function_call", "function_call", "message"]
    assert [item.get("arguments") for item in encoder.output_items()] == ['{"a":1}', '{"b":2}', None]


def test_calls_that_share_an_index_are_told_apart_by_id() -> None:
    """Engines exist that give each parallel call the index 0; the ids keep them apart."""
    encoder = make()
    calls = [ToolCallDelta(0, f"call_{n}", "look", f'{{"n":{n}}}') for n in range(3)]
    check_order(parse(run(encoder, calls, [Finished("tool_calls")])))
    assert [item["call_id"] for item in encoder.output_items()] == ["call_0", "call_1", "call_2"]


def test_a_finished_call_that_goes_on_fails_the_turn() -> None:
    """A client may have run the call already: white space after it is nothing, more arguments are a failure."""
    encoder = make()
    encoder.start()
    encoder.feed([ToolCallDelta(0, "call_a", "look", "{}"), TextDelta("t"), ToolCallDelta(0, arguments=" \n")])
    assert encoder.failure is None
    events = parse(encoder.feed([ToolCallDelta(0, arguments='{"a":1}')]))
    assert events[-1]["type"] == "response.failed"
    assert encoder.failure is not None
    assert encoder.failure.id in events[-1]["response"]["error"]["message"]


def test_a_call_without_arguments_is_an_empty_object() -> None:
    """Engines leave the arguments of a parameterless function empty; clients parse them as JSON."""
    encoder = make()
    final = check_order(parse(run(encoder, [ToolCallDelta(0, "call_a", "now"), Finished("tool_calls")])))
    assert final["output"][0]["arguments"] == "{}"


# --- how a turn ends ---


@pytest.mark.parametrize(("reason", "told"), [("length", "max_output_tokens"), ("content_filter", "content_filter")])
def test_a_cut_answer_is_incomplete_and_says_why(reason: Any, told: str) -> None:
    """Truncation is reported, in the response and in the item that was cut."""
    encoder = make()
    events = parse(run(encoder, [ReasoningDelta("hm"), TextDelta("half"), Finished(reason)]))
    final = check_order(events)
    assert events[-1]["type"] == "response.incomplete"
    assert final["incomplete_details"] == {"reason": told}
    assert [item["status"] for item in final["output"]] == ["completed", "incomplete"]


@pytest.mark.parametrize("ending", [Finished("length"), BROKEN])
def test_half_a_custom_call_is_never_done(ending: Event) -> None:
    """Clients run a call when its item is done; half of a script would run, so it is only listed as incomplete."""
    encoder = make()
    events = parse(run(encoder, [ToolCallDelta(0, "call_a", "shell", "rm -rf /tmp/", "custom"), ending]))
    assert not any(event["type"].endswith(("item.done", "input.done")) for event in events)
    assert [item["status"] for item in events[-1]["response"]["output"]] == ["incomplete"]


def test_a_failure_ends_the_stream_at_once() -> None:
    """`response.failed` carries the code, the words and the id that is in the log; nothing follows it."""
    encoder = make()
    encoder.start()
    encoder.feed([TextDelta("half")])
    events = parse(encoder.feed([BROKEN, TextDelta("more"), Finished("stop")]))
    assert events[-1]["type"] == "response.failed"
    assert encoder.end() == encoder.feed([TextDelta("more")]) == b""
    error = events[-1]["response"]["error"]
    assert (error["code"], error["id"]) == ("server_error", "err_1")
    assert error["message"] == "The engine broke. (error id: err_1)"


def test_half_an_answer_is_never_done() -> None:
    """Clients keep what is done: Codex would tell the half to the model at each new try, and run a call. After a
    failure the open item is listed as incomplete, and no event finishes it."""
    half_call = ToolCallDelta(0, "call_a", "look", "{}")
    for said in (TextDelta("half"), ReasoningDelta("half"), half_call):
        encoder = make()
        events = parse(run(encoder, [said, BROKEN]))
        check_order(events)
        assert not any(event["type"].endswith(".done") for event in events)
        assert [item["status"] for item in encoder.output_items()] == ["incomplete"]
    encoder = make()
    events = parse(run(encoder, [TextDelta("whole"), half_call, BROKEN]))
    check_order(events)
    assert [item["status"] for item in encoder.output_items()] == ["completed", "incomplete"]


@pytest.mark.parametrize(
    ("failed", "code"),
    [
        (Failed("e", "context_length_exceeded", "invalid_request_error", "Too long.", 400), "context_length_exceeded"),
        (Failed("e", "insufficient_quota", "insufficient_quota", "Spent.", 429), "insufficient_quota"),
        (Failed("e", "slow_down", "rate_limit_error", "Slow.", 429, 1.5), "rate_limit_exceeded"),
        (Failed("e", "bad_image", "invalid_request_error", "No.", 400), "invalid_prompt"),
        (Failed("e", "engine_timeout", "server_error", "Late.", 504), "server_error"),
    ],
)
def test_failures_have_codes_that_clients_know(failed: Failed, code: str) -> None:
    """What ends a turn for good and what may be tried again is told by the official codes."""
    encoder = make()
    error = check_order(parse(run(encoder, [failed])))["error"]
    assert error["code"] == code
    assert ("try again in 1.5s" in error["message"]) == (failed.retry_after_s is not None)


def test_an_engine_that_just_stops_is_a_failure() -> None:
    """Without `Finished` there is no completed response, streaming or not, and the gateway learns the error's id."""
    encoder = make()
    assert parse(run(encoder, [TextDelta("half")]))[-1]["type"] == "response.failed"
    silent = make(stream=False)
    assert json.loads(silent.whole())["status"] == "failed"
    assert silent.failure is not None
    assert silent.failure.id.startswith("err_")


def test_without_usage_there_is_none() -> None:
    """What the engine did not count is null, never zero."""
    encoder = make()
    assert check_order(parse(run(encoder, [TextDelta("a"), Finished("stop")])))["usage"] is None
