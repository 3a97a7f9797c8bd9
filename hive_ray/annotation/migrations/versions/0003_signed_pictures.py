"""What addresses of pictures are signed with that an administrator gives to Label Studio."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("project", sa.Column("secret", sa.String(), nullable=True))
