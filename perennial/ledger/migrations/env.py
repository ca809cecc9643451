"""Runs migrations on the connection that `perennial.ledger.connect` hands over."""

from alembic import context

from perennial.ledger.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
context.run_migrations()
