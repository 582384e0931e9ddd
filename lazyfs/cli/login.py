"""login, logout."""

import sys
from typing import Final

import click
import trio

from lazyfs.assembly import source_settings
from lazyfs.cli.options import SOURCE, configured_by
from lazyfs.cli.output import write_line
from lazyfs.config import Config
from lazyfs.source.auth.credentials import Credentials
from lazyfs.source.auth.store import Kept, forget_login, keep_login
from lazyfs.source.registry.login import Login, parse_registry, try_login

_MOST_SECRET: Final = 1 << 20  # bytes; tokens of clouds have some thousands


@click.command()
@configured_by(SOURCE)
@click.argument("registry")
@click.option("-u", "--username", help="Who you are there; asked for at a terminal.")
@click.option("--password-stdin", is_flag=True, help="Read the password or token from standard input.")
def login(config: Config, registry: str, username: str | None, password_stdin: bool) -> None:
    """Log in to REGISTRY: try a user and password there, and keep them for all later commands.

    They are kept where docker keeps them: in the credential helper that ~/.docker/config.json names
    (credsStore, credHelpers), else in that file; REGISTRY_AUTH_FILE or `auth_files` name another. If the
    registry gives a token for the purpose, the token is kept and not the password.

    \b
      lazyfs login ghcr.io
      lazyfs login docker.io -u alice --password-stdin < token.txt
    """  # noqa: D301  # \b is click's mark for text that is not to be wrapped
    name = parse_registry(registry)
    if config.offline:
        raise click.UsageError("login asks the registry: leave --offline out")
    credentials = _credentials(username, from_stdin=password_stdin)
    settings = source_settings(config)

    async def run() -> tuple[Login, Kept]:
        tried = await try_login(name, credentials, settings)
        return tried, await keep_login(config.auth_files, name, tried.credentials)

    tried, kept = trio.run(run)
    write_line(f"logged in to {name} as {credentials.username}; kept in {kept.place}")
    if not tried.checked:
        click.echo(f"lazyfs: {name} lets anybody in: whether the password is right is not known", err=True)
    if not kept.encrypted:
        click.echo(
            f"lazyfs: {kept.place} is not encrypted: who can read it can use the login; "
            "a credential helper (credsStore) is safer",
            err=True,
        )


def _credentials(username: str | None, *, from_stdin: bool) -> Credentials:
    """What the user gives, on standard input or when asked; never in an argument, where others see it."""
    at_terminal = sys.stdin.isatty() and sys.stderr.isatty()
    if from_stdin and not username:
        raise click.UsageError("--password-stdin takes --username too")
    if not from_stdin and not at_terminal:
        raise click.UsageError("there is no terminal to ask at: give --username and --password-stdin")
    user = username or str(click.prompt("Username", err=True))
    if from_stdin:
        password = sys.stdin.buffer.read(_MOST_SECRET).decode("utf-8", "replace").rstrip("\r\n")
    else:
        password = str(click.prompt("Password", hide_input=True, err=True))
    if not password or "\ufffd" in password:
        raise click.UsageError("the password is not UTF-8" if password else "the password is empty")
    if ":" in user:
        raise click.UsageError("a user's name has no colon")
    return Credentials(user, password)


@click.command()
@configured_by()
@click.argument("registry")
def logout(config: Config, registry: str) -> None:
    """Forget what was kept for REGISTRY, in every place where commands look for it."""
    name = parse_registry(registry)
    places = trio.run(forget_login, config.auth_files, name)
    for place in places:
        write_line(f"forgot {name} in {place}")
    if not places:
        click.echo(f"lazyfs: nothing was kept for {name}", err=True)
