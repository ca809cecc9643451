"""What the model before would have answered, of labelled images that its successor answered."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

SERIAL = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "watched_rows",
        sa.Column("deployment_id", SERIAL, autoincrement=False, nullable=False),
        sa.Column("prediction_id", sa.String(length=36), nullable=False),
        sa.Column("image_digest", sa.String(length=64), nullable=False),
        sa.Column("live_answer", sa.Text(), nullable=False),
        sa.Column("live_confidence", sa.Float(), nullable=False),
        sa.Column("before_answer", sa.Text(), nullable=False),
        sa.Column("before_confidence", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("deployment_id", "prediction_id", name=op.f("pk_watched_rows")),
    )
