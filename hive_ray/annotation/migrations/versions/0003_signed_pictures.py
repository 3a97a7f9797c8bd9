"""The key that signs URLs of pictures for Label Studio."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("project", sa.Column("secret", sa.String(), nullable=True))
