"""The torch worker measures itself, under the policy in force or in full precision, between the rounds of its traffic
(`sekisho.engines.torch_worker.perplexity`)."""

from typing import Any, Final

import msgspec

from sekisho.control.perplexity.base import Precision, Scores, Stretch
from sekisho.control.perplexity.client import Client

ROUTE: Final = "torch"


class _Measured(msgspec.Struct):
    stretches: list[Stretch]
    policy: dict[str, Any]
    software: str


async def score(
    client: Client,
    body: str,
    stretch: int,
    *,
    only: int | None = None,
    precision: Precision = "in_force",
    deadline_s: float = 1800.0,
) -> Scores:
    """Raises `Unmeasured`, also where the worker gave up because its traffic needs the memory."""
    wish = {"text": body, "stretch": stretch, "only": only, "full_precision": precision == "full"}
    told = await client.ask("/perplexity", wish, _Measured, deadline_s)
    return Scores(told.stretches, told.policy, told.software)
