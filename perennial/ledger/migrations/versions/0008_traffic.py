"""How many predictions there were, by minute and version: to draw a month of them must not take a look at each."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "traffic",
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("model_version", sa.String(length=64), nullable=False),
        sa.Column("answered", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("at", "model_version", name=op.f("pk_traffic")),
    )
    # SQLite keeps moments as text: 2026-11-22 09:41:07.123456.
    sqlite = op.get_bind().dialect.name == "sqlite"
    minute = r"substr(at, 1, 16) || '\:00.000000'" if sqlite else "date_trunc('minute', at)"
    op.execute(
        f"INSERT INTO traffic (at, model_version, answered) "  # noqa: S608 - one of the two above
        f"SELECT {minute}, model_version, count(*) FROM predictions GROUP BY 1, 2"
    )
