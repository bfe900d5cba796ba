"""The tables. Every change here needs a migration and its number at the end of REVISIONS; tests compare the two."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    text,
)

REVISIONS = ("0001", "0002", "0003")
HEAD = REVISIONS[-1]

metadata = MetaData()

keys = Table(
    "keys",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", String(64), nullable=False),
    Column("scopes", Text, nullable=False),
    Column("models", Text),
    Column("rpm", BigInteger),
    Column("tpm", BigInteger),
    Column("parallel", BigInteger),
    Column("budget_tokens", BigInteger),
    Column("budget_cost_micros", BigInteger),
    Column("networks", Text, nullable=False),
    Column("expires_at", Double),
    Column("created_at", Double, nullable=False),
    Column("revoked_at", Double),
    Column("rotated_at", Double),
    Column("revision", BigInteger, nullable=False),
)
Index(
    "keys_live_name",
    keys.c.name,
    unique=True,
    sqlite_where=text("revoked_at IS NULL"),
    postgresql_where=text("revoked_at IS NULL"),
)

# A key has one secret, and for the grace after a rotation the one before it too. `expires_at` None: the current one.
key_secrets = Table(
    "key_secrets",
    metadata,
    Column("secret_hash", String(64), primary_key=True),
    Column("key_id", String(64), ForeignKey("keys.id", ondelete="CASCADE"), nullable=False),
    Column("last4", String(4), nullable=False),
    Column("expires_at", Double),
)
Index("key_secrets_key_id", key_secrets.c.key_id)

revisions = Table(
    "revisions",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", BigInteger, nullable=False),
)

# No foreign key to `keys`: a record of what was used must never be refused.
usage = Table(
    "usage",
    metadata,
    Column("request_id", Text, primary_key=True),
    Column("key_id", Text, nullable=False),
    Column("user", Text),
    Column("model", Text, nullable=False),
    Column("protocol", Text, nullable=False),
    Column("day", String(10), nullable=False),
    Column("started_at", Double, nullable=False),
    Column("duration_ms", Double, nullable=False),
    Column("ttft_ms", Double),
    Column("input_tokens", BigInteger),
    Column("output_tokens", BigInteger),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    Column("estimated", Boolean, nullable=False),
    Column("cost_micros", BigInteger, nullable=False),
    Column("status", String(16), nullable=False),
    Column("error_id", Text),
    Column("error_code", Text),
    Column("http_status", BigInteger, nullable=False),
)
Index("usage_started_at", usage.c.started_at, usage.c.request_id)
Index("usage_key_started_at", usage.c.key_id, usage.c.started_at)

usage_months = Table(
    "usage_months",
    metadata,
    Column("month", String(7), primary_key=True),
    Column("key_id", Text, primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("cost_micros", BigInteger, nullable=False),
)

responses = Table(
    "responses",
    metadata,
    Column("id", String(128), primary_key=True),
    Column("key_id", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("status", String(32), nullable=False),
    Column("previous_response_id", String(128)),
    Column("model", Text, nullable=False),
    Column("response", LargeBinary, nullable=False),
    Column("input_items", LargeBinary, nullable=False),
)
Index("responses_expires_at", responses.c.expires_at)
Index("responses_status", responses.c.status)

meta = Table(
    "meta",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("value", Text, nullable=False),
)

# `question`, `answer` and `reason` arrive sealed. No foreign key to `keys`: a ticket outlives the key that asked.
escalations = Table(
    "escalations",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("request_hash", String(128), nullable=False),
    Column("request_id", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("key_name", Text, nullable=False),
    Column("user", Text),
    Column("model", Text, nullable=False),
    Column("protocol", String(32), nullable=False),
    Column("category", String(32), nullable=False),
    Column("channel", String(32), nullable=False),
    Column("severity", String(16), nullable=False),
    Column("language", String(32), nullable=False),
    Column("rationale", Text, nullable=False),
    Column("question", Text, nullable=False),
    Column("behaviour", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("answer", Text),
    Column("reason", Text),
    Column("decided_by", Text),
    Column("decided_at", Double),
    Column("used_at", Double),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("told_version", BigInteger, nullable=False),
)
Index("escalations_created_at", escalations.c.created_at, escalations.c.id)
Index("escalations_request", escalations.c.request_hash, escalations.c.key_id)
# One open ticket for a request that is asked again and again.
_OPEN_TICKET = text("state = 'pending' AND behaviour = 'ticket'")
Index(
    "escalations_open_ticket",
    escalations.c.request_hash,
    escalations.c.key_id,
    unique=True,
    sqlite_where=_OPEN_TICKET,
    postgresql_where=_OPEN_TICKET,
)
_UNTOLD = text("told_version < version")
Index("escalations_untold", escalations.c.created_at, sqlite_where=_UNTOLD, postgresql_where=_UNTOLD)
_PENDING = text("state = 'pending'")
Index("escalations_pending", escalations.c.expires_at, sqlite_where=_PENDING, postgresql_where=_PENDING)

escalation_notices = Table(
    "escalation_notices",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("ticket_id", String(64), ForeignKey("escalations.id", ondelete="CASCADE"), nullable=False),
    Column("channel", String(32), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("target", Text, nullable=False),
    Column("approver", Text),
    Column("state", String(16), nullable=False),
    Column("attempts", BigInteger, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("next_attempt_at", Double, nullable=False),
    Column("last_error", Text),
)
Index("escalation_notices_ticket_id", escalation_notices.c.ticket_id)
Index("escalation_notices_due", escalation_notices.c.next_attempt_at, sqlite_where=_PENDING, postgresql_where=_PENDING)

escalation_tokens = Table(
    "escalation_tokens",
    metadata,
    Column("token_hash", String(64), primary_key=True),
    Column("ticket_id", String(64), ForeignKey("escalations.id", ondelete="CASCADE"), nullable=False),
    Column("request_hash", String(128), nullable=False),
    Column("approver", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("used_at", Double),
)
Index("escalation_tokens_ticket_id", escalation_tokens.c.ticket_id)

# Every write to a run and its steps names `owner_token`. `folder` is where the run's files were when it last ran.
runs = Table(
    "runs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("kind", String(32), nullable=False),
    Column("title", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("plan", Text, nullable=False),
    Column("plan_hash", String(64), nullable=False),
    Column("folder", Text, nullable=False),
    Column("mark", String(64), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    Column("finished_at", Double),
    Column("owner_token", String(64)),
    Column("owner_pid", BigInteger),
    Column("owner_birth", Text),
    Column("owner_host", Text),
    Column("owner_place", Text),
    Column("owner_seen_at", Double),
)
Index("runs_created_at", runs.c.created_at, runs.c.id)

run_steps = Table(
    "run_steps",
    metadata,
    Column("run_id", String(64), ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("key", String(128), primary_key=True),
    Column("position", BigInteger, nullable=False),
    Column("inputs_hash", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempts", BigInteger, nullable=False),
    Column("result", Text),
    Column("artifacts", Text, nullable=False),
    Column("checkpoint", Text),
    Column("children", Text, nullable=False),
    Column("started_at", Double, nullable=False),
    Column("finished_at", Double),
    Column("error", Text),
)
