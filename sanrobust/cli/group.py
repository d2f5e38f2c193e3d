"""Groups of commands that print deliberate errors as one sentence and suggest close matches."""

from __future__ import annotations

import shlex

import click

from sanrobust.cli.streams import nowhere_to_print, patient_stderr, refused_by_output
from sanrobust.errors import Interrupted, SanrobustError, UsageError, readable, shown_value
from sanrobust.files import printable
from sanrobust.processes import Stop, stoppable
from sanrobust.registry import closest
from sanrobust.trouble import machine_error

_TYPED = "sanrobust.command"


class Command(click.Command):
    """A command that refuses an option given twice, and text that is empty.

    Of two the last one would win without a word. A shell's variable that is not set is empty
    text, which no option means.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the words behind the command's name."""
        values, _, order = self.make_parser(ctx).parse_args(args=list(args))
        for param in order:
            once = isinstance(param, click.Option) and not (param.multiple or param.count)
            if once and order.count(param) > 1:
                raise click.UsageError(f"{param.opts[-1]} must be given once, but it was given "
                                       f"{order.count(param)} times: leave all but one out.", ctx)
            given = values.get(param.name or "")
            if "" in (given if isinstance(given, (list, tuple)) else (given,)):
                name = param.opts[-1] if isinstance(param, click.Option) else param.name
                raise UsageError(f"{name} must have a value", seen="it is empty text",
                                 hint="give one, or leave it out")
        return super().parse_args(ctx, args)


class ErrorGroup(click.Group):
    """A group that turns `SanrobustError` into a message and an exit code."""

    command_class = Command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the words behind the group's name; the first group remembers them all."""
        if ctx.parent is None:
            ctx.meta[_TYPED] = shlex.join(["sanrobust", *args])
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        """Run the chosen command."""
        with stoppable(ends_the_process=True) as stop, patient_stderr():
            try:
                return super().invoke(ctx)
            except click.exceptions.NoArgsIsHelpError:
                raise
            except click.UsageError as error:
                message = printable(readable(error.format_message()))
                raise click.UsageError(message, error.ctx) from error
            except (click.ClickException, click.Abort, click.exceptions.Exit):
                raise
            except (Exception, KeyboardInterrupt) as error:
                problem = _problem(error, stop)
                if problem is None:
                    raise
                click.echo(printable(f"sanrobust: {problem}"), err=True)
                ctx.exit(problem.exit_code)

    def resolve_command(self, ctx: click.Context, args: list[str]
                        ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; a mistyped one is answered with the closest match."""
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            match = closest(name, self.list_commands(ctx))
            hint = f" Did you mean {match}?" if match else ""
            ctx.fail(f"There is no command {shown_value(name)}.{hint}")
        return super().resolve_command(ctx, args)


def _problem(error: BaseException, stop: Stop) -> SanrobustError | None:
    """Return what is to be told of an error; None for a defect, which keeps its traceback."""
    if isinstance(error, SanrobustError):
        return error
    # Libraries turn the KeyboardInterrupt of a stop into errors of their own.
    if stop.heard or isinstance(error, KeyboardInterrupt):
        return Interrupted("a command must end by itself to do all that it was asked for",
                           seen=f"it was stopped by {stop.heard or 'an interrupt'}",
                           hint="type the same command again")
    if isinstance(error, OSError) and refused_by_output(error):
        return nowhere_to_print(error, hint="send it to a file or a disk with room")
    return machine_error(error)


def typed() -> str:
    """Return the whole command as the user typed it, quoted for a shell."""
    return str(click.get_current_context().meta.get(_TYPED, ""))
