"""Run with the address and a key: LiteLLM as a client of every protocol that it knows. Prints one JSON object each."""

import json
import sys

import litellm

url, key = sys.argv[1:]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def ask(model: str, base: str, messages: list, **more: object) -> object:
    # Its Messages provider asks for 128,000 tokens where nobody says how many, which no small model's context holds.
    more.setdefault("max_tokens", 1000)
    return litellm.completion(model=model, api_base=base, api_key=key, messages=messages, num_retries=0, **more)


for model, base in (
    ("openai/fake", f"{url}/v1"),
    ("openai/responses/fake", f"{url}/v1"),
    ("hosted_vllm/fake", f"{url}/v1"),
    ("lm_studio/fake", f"{url}/v1"),
    ("anthropic/fake", url),
    ("ollama_chat/fake", url),
):
    hello = [{"role": "user", "content": "hello there"}]
    whole = ask(model, base, hello)
    streamed = ask(model, base, hello, stream=True)
    messages = [{"role": "user", "content": 'call:weather {"city":"Kyoto"}'}]
    called = ask(model, base, messages, tools=[TOOL]).choices[0].message
    (call,) = called.tool_calls
    messages += [called.model_dump(exclude_none=True), {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    told = {
        "model": model,
        "whole": whole.choices[0].message.content,
        "tokens": whole.usage.total_tokens,
        "streamed": "".join(chunk.choices[0].delta.content or "" for chunk in streamed),
        "arguments": json.loads(call.function.arguments),
        "tool": ask(model, base, messages, tools=[TOOL]).choices[0].message.content,
    }
    print(json.dumps(told))
