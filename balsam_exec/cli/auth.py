"""`balsam login` and `balsam token`."""

from __future__ import annotations

from typing import Annotated

import typer

from balsam_exec.cli.common import JsonOption, ask_secret, connect, group

app = group("Tokens: what programs and machines identify themselves with, instead of your password.")


def login(
    url: Annotated[str, typer.Argument(help="The service, like https://balsam.example.org")],
    username: Annotated[
        str | None, typer.Option("--username", "-u", help="Your name there; asked for if absent.")
    ] = None,
    site: Annotated[str | None, typer.Option("--site", "-s", help="Your default site there.")] = None,
    with_token: Annotated[bool, typer.Option("--with-token", help="Read a token, instead of a password.")] = False,
    json: JsonOption = False,
) -> None:
    """Log in to a service; the commands and programs of this user then use it.

    The password, or the token, is asked for or read from the standard input. Only a token is stored.
    """
    from pydantic import SecretStr

    from balsam_exec.cli.output import print_one
    from balsam_exec.client.config import Credentials, save_credentials
    from balsam_exec.client.service import Service

    if with_token:
        token = ask_secret("Token")
    else:
        username = username or typer.prompt("Username")
        token = Service(url).login(username, ask_secret("Password")).token
    user = Service(url, token).me()
    path = save_credentials(Credentials(url=url, token=SecretStr(token), site=site))
    print_one(user, f"logged in to {url} as {user.username} ({path})", json)


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What it is for.")],
    days: Annotated[int | None, typer.Option("--days", min=1, max=3650, help="How long it is valid.")] = None,
    json: JsonOption = False,
) -> None:
    """Make a token and print it. It cannot be shown again."""
    from balsam_exec.cli.output import print_one
    from balsam_exec.model.auth import TokenSpec

    made = connect().create_token(TokenSpec(name=name, expires_in_sec=days * 86400 if days else None))
    print_one(made, made.token, json)


@app.command("ls")
def list_tokens(json: JsonOption = False) -> None:
    """List your tokens, without their secrets."""
    from balsam_exec.cli.output import print_records

    columns = {
        "ID": lambda token: token.id,
        "NAME": lambda token: token.name,
        "CREATED": lambda token: token.created,
        "EXPIRES": lambda token: token.expires,
        "LAST USED": lambda token: token.last_used,
    }
    print_records(connect().tokens(), columns, json)


@app.command()
def revoke(
    ids: Annotated[list[int], typer.Argument(help="Ids of tokens (see `balsam token ls`).")], json: JsonOption = False
) -> None:
    """Make tokens invalid, at once."""
    from balsam_exec.cli.output import print_one
    from balsam_exec.model.base import Count

    service = connect()
    for token_id in ids:
        service.revoke_token(token_id)
    print_one(Count(count=len(ids)), str(len(ids)), json)
