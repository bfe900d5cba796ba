"""Long runs and their steps, which go on after a kill."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "runs",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("plan", sa.Text, nullable=False),
        sa.Column("plan_hash", sa.String(64), nullable=False),
        sa.Column("folder", sa.Text, nullable=False),
        sa.Column("mark", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("updated_at", sa.Double, nullable=False),
        sa.Column("finished_at", sa.Double),
        sa.Column("owner_token", sa.String(64)),
        sa.Column("owner_pid", sa.BigInteger),
        sa.Column("owner_birth", sa.Text),
        sa.Column("owner_host", sa.Text),
        sa.Column("owner_place", sa.Text),
        sa.Column("owner_seen_at", sa.Double),
    )
    op.create_index("runs_created_at", "runs", ["created_at", "id"])
    op.create_table(
        "run_steps",
        sa.Column("run_id", sa.String(64), sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("key", sa.String(128), primary_key=True),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("inputs_hash", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempts", sa.BigInteger, nullable=False),
        sa.Column("result", sa.Text),
        sa.Column("artifacts", sa.Text, nullable=False),
        sa.Column("checkpoint", sa.Text),
        sa.Column("children", sa.Text, nullable=False),
        sa.Column("started_at", sa.Double, nullable=False),
        sa.Column("finished_at", sa.Double),
        sa.Column("error", sa.Text),
    )


def downgrade() -> None:
    for table in ("run_steps", "runs"):
        op.drop_table(table)
