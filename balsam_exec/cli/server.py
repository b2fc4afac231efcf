"""`balsam server`: the service itself, for those who run one for others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated

import typer

from balsam_exec.cli.common import ask_secret, group

app = group("The service, for those who run one for others.")

DatabaseOption = Annotated[
    str,
    typer.Option(
        "--database",
        envvar="BALSAM_SERVER_DATABASE_URL",
        metavar="URL",
        help="Like postgresql+psycopg://me@host/balsam or sqlite:////var/lib/balsam.db",
    ),
]


@contextmanager
def _readable_errors(database: str) -> Iterator[None]:
    """A database that cannot be used, and a port that is taken, as errors of ours."""
    from sqlalchemy.exc import SQLAlchemyError

    from balsam_exec.embedded.layout import without_password
    from balsam_exec.model.errors import ConfigurationError

    try:
        yield
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        raise ConfigurationError(f"cannot use the database {without_password(database)}: {reason}") from error
    except OSError as error:
        raise ConfigurationError(f"cannot listen there: {error.strerror}") from error


@app.command()
def run(
    database: DatabaseOption,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on.")] = 8000,
) -> None:
    """Run the service in the foreground until Ctrl-C or SIGTERM. It brings the database up to date first."""
    from balsam_exec.server.config import ServerSettings
    from balsam_exec.server.run import serve

    typer.echo(f"serving http://{host}:{port}, until Ctrl-C", err=True)
    with _readable_errors(database), suppress(KeyboardInterrupt):
        serve(ServerSettings(database_url=database), host=host, port=port)


@app.command("create-user")
def create_user(
    username: Annotated[str, typer.Argument(help="The name to log in with.")], database: DatabaseOption
) -> None:
    """Add a user. The password is asked for, or read from the standard input."""
    from pydantic import TypeAdapter

    from balsam_exec.model.auth import Username
    from balsam_exec.model.errors import InvalidRequest
    from balsam_exec.server import admin

    name = TypeAdapter(Username).validate_python(username)
    password = ask_secret("Password", confirm=True)
    if not password:
        raise InvalidRequest("the password is empty")
    with _readable_errors(database):
        admin.create_user(database, name, password)
    print(f"created user {name}; they can now: balsam login URL --username {name}")
