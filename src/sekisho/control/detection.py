"""What runs behind an OpenAI-compatible address: asked, not guessed from the port."""

from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from sekisho.core.decoding import Undecodable, decoded

_ASK_S: Final = 5.0
_OWNERS: Final = {"vllm": "vllm", "llamacpp": "llama_cpp", "lemonade": "lemonade"}


class Found(msgspec.Struct, frozen=True):
    """`kind`: one of `actuators.ACTUATORS`. `models`: what it lists, perhaps nothing."""

    kind: str
    models: tuple[str, ...]


class NothingThere(Exception):
    """Nobody answers there as OpenAI's interface does. The text says what came instead."""


async def detect(url: str, key: str | None) -> Found:
    """`url` ends in /v1. Raises NothingThere."""
    import aiohttp

    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout = aiohttp.ClientTimeout(total=_ASK_S)
    async with aiohttp.ClientSession(timeout=timeout, headers=headers) as session:
        listed = await _asked(session, url + "/models")
        if isinstance(listed, str):
            raise NothingThere(f"{url}/models: {listed}")
        data = [each for each in listed.get("data") or () if isinstance(each, dict)]
        models = tuple(str(each["id"]) for each in data if each.get("id"))
        for each in data:
            owner = str(each.get("owned_by", "")).lower().replace(".", "")
            if owner in _OWNERS:
                return Found(_OWNERS[owner], models)
        root = urlsplit(url)._replace(path="").geturl()
        health = await _asked(session, url + "/health")
        if isinstance(health, dict) and "all_models_loaded" in health:
            return Found("lemonade", models)
        props = await _asked(session, root + "/props")
        if isinstance(props, dict) and "default_generation_settings" in props:
            return Found("llama_cpp", models)
        return Found("openai_http", models)


async def _asked(session: Any, url: str) -> dict[str, Any] | str:
    """The object that came, or why none did."""
    import aiohttp

    try:
        async with session.get(url, allow_redirects=False) as response:
            if response.status != 200:
                return f"HTTP {response.status}"
            return decoded(await response.read(), dict[str, Any])
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return str(error) or type(error).__name__
    except Undecodable as error:
        return f"no JSON object: {error}"
