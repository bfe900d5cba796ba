"""Questions to a running engine. Whatever goes wrong is `Unmeasured`, with what the engine said."""

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from sekisho.control.perplexity.base import Unmeasured
from sekisho.core.decoding import Undecodable, decoded
from sekisho.engines.http_client import HttpClient, HttpTrouble

T = TypeVar("T")
_SHOWN: int = 500


class Client:
    """`address`: the engine's root, without /v1. Belongs to one loop; close it."""

    def __init__(self, address: str, key: str | None = None) -> None:
        headers = {"Content-Type": "application/json"}
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        self._http = HttpClient(address, headers)
        self._base = "/" + address.partition("://")[2].partition("/")[2].strip("/")

    async def ask(self, path: str, body: Mapping[str, Any], shape: type[T], timeout_s: float) -> T:
        path = self._base.rstrip("/") + path
        try:
            response = await self._http.send("POST", path, msgspec.json.encode(body), timeout_s)
            try:
                said = await response.read()
            finally:
                response.let_go()
        except HttpTrouble as error:
            raise Unmeasured(f"the engine does not answer {path}: {error or type(error).__name__}") from None
        if response.status != 200:
            text = said[:_SHOWN].decode(errors="replace")
            raise Unmeasured(f"the engine refused {path} with {response.status}: {text}")
        try:
            return decoded(said, shape)
        except Undecodable as error:
            raise Unmeasured(f"the engine answered {path} in another shape than expected: {error}") from None

    async def close(self) -> None:
        await self._http.close()

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
