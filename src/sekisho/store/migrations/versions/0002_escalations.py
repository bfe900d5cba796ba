"""The escalation desk: tickets, the notices about them, single-use links."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    _create_escalations()
    _create_notices()
    op.create_table(
        "escalation_tokens",
        sa.Column("token_hash", sa.String(64), primary_key=True),
        _ticket(),
        sa.Column("request_hash", sa.String(128), nullable=False),
        sa.Column("approver", sa.Text, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("expires_at", sa.Double, nullable=False),
        sa.Column("used_at", sa.Double),
    )
    op.create_index("escalation_tokens_ticket_id", "escalation_tokens", ["ticket_id"])


def _create_escalations() -> None:
    op.create_table(
        "escalations",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("request_hash", sa.String(128), nullable=False),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("key_name", sa.Text, nullable=False),
        sa.Column("user", sa.Text),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("protocol", sa.String(32), nullable=False),
        sa.Column("category", sa.String(32), nullable=False),
        sa.Column("channel", sa.String(32), nullable=False),
        sa.Column("severity", sa.String(16), nullable=False),
        sa.Column("language", sa.String(32), nullable=False),
        sa.Column("rationale", sa.Text, nullable=False),
        sa.Column("question", sa.Text, nullable=False),
        sa.Column("behaviour", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("answer", sa.Text),
        sa.Column("reason", sa.Text),
        sa.Column("decided_by", sa.Text),
        sa.Column("decided_at", sa.Double),
        sa.Column("used_at", sa.Double),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("expires_at", sa.Double, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("told_version", sa.BigInteger, nullable=False),
    )
    op.create_index("escalations_created_at", "escalations", ["created_at", "id"])
    op.create_index("escalations_request", "escalations", ["request_hash", "key_id"])
    _create_partial("escalations_open_ticket", ["request_hash", "key_id"], "state = 'pending' AND behaviour = 'ticket'")
    _create_partial("escalations_untold", ["created_at"], "told_version < version", unique=False)
    _create_partial("escalations_pending", ["expires_at"], "state = 'pending'", unique=False)


def _create_notices() -> None:
    op.create_table(
        "escalation_notices",
        sa.Column("id", sa.String(64), primary_key=True),
        _ticket(),
        sa.Column("channel", sa.String(32), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("approver", sa.Text),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempts", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("next_attempt_at", sa.Double, nullable=False),
        sa.Column("last_error", sa.Text),
    )
    op.create_index("escalation_notices_ticket_id", "escalation_notices", ["ticket_id"])
    condition = sa.text("state = 'pending'")
    op.create_index(
        "escalation_notices_due",
        "escalation_notices",
        ["next_attempt_at"],
        sqlite_where=condition,
        postgresql_where=condition,
    )


def _ticket() -> "sa.Column[str]":
    return sa.Column("ticket_id", sa.String(64), sa.ForeignKey("escalations.id", ondelete="CASCADE"), nullable=False)


def _create_partial(name: str, columns: list[str], where: str, unique: bool = True) -> None:
    condition = sa.text(where)
    op.create_index(name, "escalations", columns, unique=unique, sqlite_where=condition, postgresql_where=condition)


def downgrade() -> None:
    for table in ("escalation_tokens", "escalation_notices", "escalations"):
        op.drop_table(table)
