"""Run by alembic. `store.migrate` hands in a connection that is already inside the migrating transaction."""

from alembic import context

from sekisho.store.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
