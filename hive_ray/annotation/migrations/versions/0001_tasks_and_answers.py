"""People, their sessions, tasks, leases and answers."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
OPEN = sa.text("taken < wanted AND present AND broken IS NULL AND gold IS NULL")
OPEN_IN_SQLITE = sa.text("taken < wanted AND present = 1 AND broken IS NULL AND gold IS NULL")
GOLD = sa.text("gold IS NOT NULL")
LEASED = sa.text("state = 'leased'")


def upgrade() -> None:
    op.create_table(
        "project",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_project"),
    )
    op.create_table(
        "people",
        sa.Column("id", KEY, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("link_hash", sa.String(), nullable=True),
        sa.Column("handed", sa.Integer(), nullable=False),
        sa.Column("last_position", sa.BigInteger(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_people"),
        sa.UniqueConstraint("name", name="uq_people_name"),
        sa.UniqueConstraint("link_hash", name="uq_people_link_hash"),
    )
    op.create_table(
        "sessions",
        sa.Column("cookie_hash", sa.String(), nullable=False),
        sa.Column("person_id", sa.BigInteger(), nullable=False),
        sa.Column("expires", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("cookie_hash", name="pk_sessions"),
        sa.ForeignKeyConstraint(["person_id"], ["people.id"], name="fk_sessions_person_id"),
    )
    op.create_index("ix_sessions_person_id", "sessions", ["person_id"])
    op.create_table(
        "tasks",
        sa.Column("id", KEY, nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("prompt_id", sa.String(), nullable=False),
        sa.Column("instruction", sa.String(), nullable=False),
        sa.Column("edit_ids", sa.JSON(), nullable=False),
        sa.Column("editors", sa.JSON(), nullable=False),
        sa.Column("gold", sa.JSON(), nullable=True),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("wanted", sa.Integer(), nullable=False),
        sa.Column("taken", sa.Integer(), nullable=False),
        sa.Column("present", sa.Boolean(), nullable=False),
        sa.Column("broken", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_tasks"),
        sa.UniqueConstraint("key", name="uq_tasks_key"),
    )
    op.create_index("ix_tasks_prompt_id", "tasks", ["prompt_id"])
    op.create_index("ix_tasks_gold", "tasks", ["kind", "position"], sqlite_where=GOLD, postgresql_where=GOLD)
    op.create_index("ix_tasks_open", "tasks", ["kind", "position"], sqlite_where=OPEN_IN_SQLITE, postgresql_where=OPEN)
    op.create_table(
        "assignments",
        sa.Column("id", KEY, nullable=False),
        sa.Column("task_id", sa.BigInteger(), nullable=False),
        sa.Column("person_id", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("shown", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("handed", sa.Double(), nullable=False),
        sa.Column("expires", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_assignments"),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name="fk_assignments_task_id"),
        sa.ForeignKeyConstraint(["person_id"], ["people.id"], name="fk_assignments_person_id"),
        sa.UniqueConstraint("task_id", "person_id", "attempt", name="uq_assignments_task_id_person_id_attempt"),
    )
    op.create_index("ix_assignments_person_id", "assignments", ["person_id"])
    op.create_index("ix_assignments_leases", "assignments", ["expires"], sqlite_where=LEASED, postgresql_where=LEASED)
    op.create_table(
        "answers",
        sa.Column("id", KEY, nullable=False),
        sa.Column("assignment_id", sa.BigInteger(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("verdict", sa.JSON(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("previous_id", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_answers"),
        sa.ForeignKeyConstraint(["assignment_id"], ["assignments.id"], name="fk_answers_assignment_id"),
        sa.ForeignKeyConstraint(["previous_id"], ["answers.id"], name="fk_answers_previous_id"),
        sa.UniqueConstraint("key", name="uq_answers_key"),
        sa.UniqueConstraint("previous_id", name="uq_answers_previous_id"),
    )
    op.create_index("ix_answers_assignment_id", "answers", ["assignment_id"])
