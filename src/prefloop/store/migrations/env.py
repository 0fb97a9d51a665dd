"""Alembic's entry: migrate over the connection, and inside the transaction, that the store hands in."""

from alembic import context

from prefloop.store.db import VERSION_TABLE
from prefloop.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, version_table=VERSION_TABLE
)
context.run_migrations()
