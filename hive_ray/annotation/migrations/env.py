"""Run by alembic: on the connection that `Database.migrate` gives."""

from alembic import context

from hive_ray.annotation.models import Base

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
