"""Labels that are no class of the model that answered, and an index of these."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("labels", sa.Column("known", sa.Boolean(), nullable=False, server_default=sa.true()))
    op.create_index(
        op.f("ix_labels_id"),
        "labels",
        ["id"],
        sqlite_where=sa.text("known = 0"),
        postgresql_where=sa.text("NOT known"),
    )
