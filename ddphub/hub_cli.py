"""`ddphub hub`: what those who run a hub do with it. People and keys are asked of the hub; upkeep works on its data."""

import typer

from ddphub import people_cli, upkeep_cli

app = typer.Typer(no_args_is_help=True, help="Run a hub of `ddphub serve`: users, keys, audit log, backups, retention.")
for _part in (people_cli, upkeep_cli):
    # Without a name its commands are among these.
    app.add_typer(_part.app)
