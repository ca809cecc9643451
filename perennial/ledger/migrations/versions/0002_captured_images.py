"""An index from an image's digest to the rows that name it, for retention."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        op.f("ix_predictions_image_digest"),
        "predictions",
        ["image_digest"],
        sqlite_where=sa.text("image_url IS NOT NULL"),
        postgresql_where=sa.text("image_url IS NOT NULL"),
    )
