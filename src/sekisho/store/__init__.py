"""The store: keys, usage, responses state, tickets, runs. SQLite by default, PostgreSQL by URL, one code path."""

from typing import TYPE_CHECKING

from sekisho.store.config import StoreConfig
from sekisho.store.escalations import (
    CHANNELS,
    TICKET_STATES,
    Behaviour,
    Channel,
    HumanDecision,
    HumanVerdict,
    LinkToken,
    Notice,
    NoticeKind,
    NoticeState,
    Ticket,
    TicketState,
)
from sekisho.store.keys import SCOPES, KeyRecord, KeySpec, hash_secret, mask
from sekisho.store.responses import ResponseRecord
from sekisho.store.runs import (
    RUN_STATES,
    STEP_STATES,
    RunOwner,
    RunRecord,
    RunState,
    StepChild,
    StepRecord,
    StepState,
)
from sekisho.store.spool import UsageSpool
from sekisho.store.usage import Group, Spent, UsageRecord, UsageStatus, UsageSummary, month_of

if TYPE_CHECKING:
    from sekisho.store.database import Store

__all__ = [
    "CHANNELS",
    "RUN_STATES",
    "SCOPES",
    "STEP_STATES",
    "TICKET_STATES",
    "Behaviour",
    "Channel",
    "Group",
    "HumanDecision",
    "HumanVerdict",
    "KeyRecord",
    "KeySpec",
    "LinkToken",
    "Notice",
    "NoticeKind",
    "NoticeState",
    "ResponseRecord",
    "RunOwner",
    "RunRecord",
    "RunState",
    "Spent",
    "StepChild",
    "StepRecord",
    "StepState",
    "Store",
    "StoreConfig",
    "Ticket",
    "TicketState",
    "UsageRecord",
    "UsageSpool",
    "UsageStatus",
    "UsageSummary",
    "hash_secret",
    "mask",
    "month_of",
]


def __getattr__(name: str) -> object:
    """`Store` comes late: it brings SQLAlchemy (0.3 s), which settings, values and most commands do without."""
    if name == "Store":
        from sekisho.store.database import Store

        return Store
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
