"""The command `flambeau`. Each command is a module of its own, imported when it is used, so that help is quick."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click

from flambeau import __version__

#: Command, its module, and its line in the help.
COMMANDS: dict[str, tuple[str, str]] = {
    "compile": ("flambeau.cli.compile", "Compile a function, module or IR text into a shared library."),
    "run": ("flambeau.cli.run", "Run a library or a source on given or random inputs."),
    "inspect": ("flambeau.cli.inspect", "Show signature, memory plan, kernels, or any stage's text."),
    "opt": ("flambeau.cli.opt", "Run graph passes on IR text, from stdin to stdout."),
    "ops": ("flambeau.cli.ops", "List the operations, or show one."),
    "targets": ("flambeau.cli.targets", "List what libraries can be made for."),
    "doctor": ("flambeau.cli.doctor", "Check this installation."),
    "cache": ("flambeau.cli.cache", "Show or empty the compilation cache."),
}


class Failure(click.ClickException):
    """One message on stderr and exit code 1."""

    def show(self, file: Any = None) -> None:
        click.echo(f"error: {self.format_message()}", file=file, err=file is None)


class Commands(click.Group):
    """Imports commands when they are called, and turns exceptions into messages."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[cmd_name][0]).command
        for inner in [command, *getattr(command, "commands", {}).values()]:
            if all(p.name != "debug" for p in inner.params):
                inner.params.append(_debug_option())
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except BrokenPipeError:  # the reader of our output has gone; that is its business
            sys.stderr.close()
            raise click.exceptions.Exit(1) from None
        except Exception as error:
            if ctx.meta.get("flambeau.debug"):
                raise
            raise Failure(describe(error)) from None


def _debug_option() -> click.Option:
    def remember(ctx: click.Context, option: click.Parameter, value: bool) -> None:
        if value:
            ctx.meta["flambeau.debug"] = True  # shared by all contexts of one call

    return click.Option(
        ["--debug"],
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=remember,
        help="Show tracebacks.",
    )


def describe(error: BaseException) -> str:
    """One message for an error: its own words where it was raised on purpose, else its kind and place too."""
    from flambeau.compiler.diagnostics import FlambeauError

    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    text = str(error)
    if isinstance(error, FlambeauError | ValueError | TypeError | RuntimeError | OSError) and text:
        return text
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {text or 'no message'}{place} (--debug shows the traceback)"


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="flambeau")
def cli() -> None:
    """Flambeau: PyTorch's programming model on an ahead-of-time compiler."""


cli.params.append(_debug_option())


def main(arguments: Sequence[str] | None = None) -> None:
    """The console entry: exits with 0, with 1 after an error, or with 2 after wrong usage."""
    cli.main(args=None if arguments is None else list(arguments), prog_name="flambeau")


if __name__ == "__main__":
    main()
