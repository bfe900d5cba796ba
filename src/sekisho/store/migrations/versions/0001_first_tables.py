"""Keys, usage, responses state and small settings."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    _create_keys()
    _create_usage()
    op.create_table(
        "responses",
        sa.Column("id", sa.String(128), primary_key=True),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("expires_at", sa.Double, nullable=False),
        sa.Column("status", sa.String(32), nullable=False),
        sa.Column("previous_response_id", sa.String(128)),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("response", sa.LargeBinary, nullable=False),
        sa.Column("input_items", sa.LargeBinary, nullable=False),
    )
    op.create_index("responses_expires_at", "responses", ["expires_at"])
    op.create_index("responses_status", "responses", ["status"])
    op.create_table(
        "meta",
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )


def _create_keys() -> None:
    op.create_table(
        "keys",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("models", sa.Text),
        sa.Column("rpm", sa.BigInteger),
        sa.Column("tpm", sa.BigInteger),
        sa.Column("parallel", sa.BigInteger),
        sa.Column("budget_tokens", sa.BigInteger),
        sa.Column("budget_cost_micros", sa.BigInteger),
        sa.Column("networks", sa.Text, nullable=False),
        sa.Column("expires_at", sa.Double),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("revoked_at", sa.Double),
        sa.Column("rotated_at", sa.Double),
        sa.Column("revision", sa.BigInteger, nullable=False),
    )
    live = sa.text("revoked_at IS NULL")
    op.create_index("keys_live_name", "keys", ["name"], unique=True, sqlite_where=live, postgresql_where=live)
    op.create_table(
        "key_secrets",
        sa.Column("secret_hash", sa.String(64), primary_key=True),
        sa.Column("key_id", sa.String(64), sa.ForeignKey("keys.id", ondelete="CASCADE"), nullable=False),
        sa.Column("last4", sa.String(4), nullable=False),
        sa.Column("expires_at", sa.Double),
    )
    op.create_index("key_secrets_key_id", "key_secrets", ["key_id"])
    revisions = op.create_table(
        "revisions",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("value", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(revisions, [{"name": "keys", "value": 0}])


def _create_usage() -> None:
    op.create_table(
        "usage",
        sa.Column("request_id", sa.Text, primary_key=True),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("user", sa.Text),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("protocol", sa.Text, nullable=False),
        sa.Column("day", sa.String(10), nullable=False),
        sa.Column("started_at", sa.Double, nullable=False),
        sa.Column("duration_ms", sa.Double, nullable=False),
        sa.Column("ttft_ms", sa.Double),
        sa.Column("input_tokens", sa.BigInteger),
        sa.Column("output_tokens", sa.BigInteger),
        sa.Column("cached_tokens", sa.BigInteger, nullable=False),
        sa.Column("reasoning_tokens", sa.BigInteger, nullable=False),
        sa.Column("estimated", sa.Boolean, nullable=False),
        sa.Column("cost_micros", sa.BigInteger, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("error_id", sa.Text),
        sa.Column("error_code", sa.Text),
        sa.Column("http_status", sa.BigInteger, nullable=False),
    )
    op.create_index("usage_started_at", "usage", ["started_at", "request_id"])
    op.create_index("usage_key_started_at", "usage", ["key_id", "started_at"])
    op.create_table(
        "usage_months",
        sa.Column("month", sa.String(7), primary_key=True),
        sa.Column("key_id", sa.Text, primary_key=True),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("input_tokens", sa.BigInteger, nullable=False),
        sa.Column("output_tokens", sa.BigInteger, nullable=False),
        sa.Column("cost_micros", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    for table in ("meta", "responses", "usage_months", "usage", "revisions", "key_secrets", "keys"):
        op.drop_table(table)
