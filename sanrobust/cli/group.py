"""Groups of commands that print deliberate errors as one sentence and suggest close matches."""

from __future__ import annotations

import click

from sanrobust.errors import SanrobustError
from sanrobust.registry import closest


class ErrorGroup(click.Group):
    """A group that turns `SanrobustError` into a message and an exit code."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except SanrobustError as error:
            click.echo(f"sanrobust: {error}", err=True)
            ctx.exit(error.exit_code)

    def resolve_command(self, ctx: click.Context, args: list[str]
                        ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; a mistyped one is answered with the closest match."""
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            match = closest(name, self.list_commands(ctx))
            hint = f" Did you mean {match}?" if match else ""
            ctx.fail(f"There is no command {name!r}.{hint}")
        return super().resolve_command(ctx, args)
