"""How alembic runs here: on the connection of the hub that starts, in its transaction."""

from alembic import context

from ddphub.server.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    # SQLite alters a column by copying its table.
    render_as_batch=True,
    # A hub killed inside a migration leaves the schema as it was.
    transactional_ddl=True,
)
context.run_migrations()
