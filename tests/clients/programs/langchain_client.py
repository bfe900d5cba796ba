"""Run with the address and a key: LangChain's chat model over both OpenAI APIs. Prints one JSON object an API."""

import json
import sys

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

url, key = sys.argv[1:]


class Answer(BaseModel):
    ok: bool


@tool
def weather(city: str) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


for responses in (False, True):
    model = ChatOpenAI(model="fake", base_url=url, api_key=key, use_responses_api=responses, max_retries=0)
    ask = HumanMessage('call:weather {"city":"京都"}')
    asked = model.bind_tools([weather]).invoke([ask])
    (call,) = asked.tool_calls
    result = ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"])
    told = {
        "whole": model.invoke("hello there").text,
        "streamed": "".join(chunk.text for chunk in model.stream("hello there")),
        "tool": model.bind_tools([weather]).invoke([ask, asked, result]).text,
        "typed": model.with_structured_output(Answer).invoke('{"ok":true}').ok,
        "tokens": model.invoke("hello there").usage_metadata["total_tokens"],
    }
    print(json.dumps(told, ensure_ascii=False))
embeddings = OpenAIEmbeddings(model="fake", base_url=url, api_key=key, check_embedding_ctx_length=False)
print(json.dumps({"embedding": len(embeddings.embed_query("x"))}))
