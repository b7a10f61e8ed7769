"""The application: what every command has in common, errors above all."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from noisescape import __version__
from noisescape.cli.interruptions import exit_code, signals_raise
from noisescape.cli.output import console
from noisescape.errors import NoisescapeError
from noisescape.printable import printable


class TheirError(Exception):
    """Around an exception that the user's own function raised, to part it from the system's."""


class CommandList(TyperGroup):
    """Commands whose lines of help are wrapped in ``--help``; click would cut them off."""

    def format_commands(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]  # click's own type
        """Write the section of commands."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        shown = [(name, command.get_short_help_str(limit=200)) for name, command in commands if command is not None]
        with formatter.section("Commands"):
            formatter.write_dl(shown)


class Commands(CommandList):
    """The commands, with one place for what goes wrong in any of them.

    What a caller can mend is one red line and exit code 1, an interruption one and the code that shells give it;
    anything else is a bug, here or in a user's own function, and keeps its traceback.
    """

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]  # click's own type
        """Run the command that was asked for."""
        try:
            with signals_raise():
                return super().invoke(ctx)
        except KeyboardInterrupt as error:
            _say(": ".join(filter(None, ("interrupted", str(error)))))
            raise typer.Exit(exit_code(error)) from error
        except TheirError as error:
            raise error.__cause__ or error from None
        except BrokenPipeError:  # the reader of a pipe had enough: click's to end
            raise
        except (NoisescapeError, OSError) as error:
            if ctx.params["debug"]:
                raise
            _say(f"error: {error}")
            raise typer.Exit(1) from error


def _say(line: str) -> None:
    """In red on standard error, on one line, whatever names it holds."""
    console(stderr=True).print(printable(line), style="red", highlight=False, soft_wrap=True)


app = typer.Typer(
    cls=Commands,
    help="The laboratory for gradient noise.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def main(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of every error.")] = False,
) -> None:
    """The laboratory for gradient noise: measure it, shape it, and watch it escape sharp minima."""
    if version:
        typer.echo(f"noisescape {__version__}")
        raise typer.Exit
