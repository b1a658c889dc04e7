"""The `plyfold` command: a group whose commands are loaded only when they run, and the one place errors end.

`plyfold --help` knows every command by name and one line, so it imports no room and never torch.
"""

from __future__ import annotations

import atexit
import errno
import importlib
import io
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from ..core.console import print_error, printable, set_verbosity
from ..core.disk.files import DISK_FULL, NO_PATH, NOT_ALLOWED, disk_full, no_path, not_allowed
from ..core.disk.locks import no_locks
from ..core.errors import ConfigError, FailedError, NotFoundError, PlyfoldError, ran_out_of_memory
from ..core.interrupts import INTERRUPTED, allow_interrupts, end_quietly

COMMANDS: dict[str, tuple[str, str]] = {
    "quickstart": ("quickstart", "The whole job on the sandbox: train three stages, compose, score, draw the lineage."),
    "data": ("training.data", "Look at training rows, or have a teacher write them."),
    "train": ("training.train", "Train the stages that are missing or stale, each as its own adapter."),
    "rollouts": ("training.rollouts", "A vLLM server that train draws completions from (GRPO on several GPUs)."),
    "merge": ("merging.command", "Compose stages into one adapter, or fold them into a checkpoint."),
    "eval": ("evaluate", "Score variants side by side."),
    "serve": ("serve", "Serve variants from one vLLM engine."),
    "tree": ("records.lineage", "The lineage of a curriculum: base, stages, merges."),
    "log": ("records.lineage", "An adapter and its ancestors, newest first."),
    "show": ("records.lineage", "One adapter's record."),
    "diff": ("records.diff", "Two adapters side by side: what made them, and how their deltas relate."),
    "verify": ("records.verify", "Check every file of the registry against its record."),
    "sign": ("records.sign", "Sign adapters with a local key; verify --signature checks it."),
    "revoke": ("records.admin", "State that an adapter should not be used, nor what was made from it."),
    "pin": ("records.admin", "Keep an adapter from gc, whatever becomes of its names."),
    "gc": ("records.admin", "Remove what no name, lock file or running server leads to any more."),
    "lock": ("records.admin", "Write which adapter each stage is, and where, into curriculum.lock.json."),
    "import": ("records.admin", "Take a PEFT folder made elsewhere into the registry."),
    "push": ("records.push", "Publish stages on the Hugging Face Hub, parents first."),
    "pull": ("records.pull", "Fetch adapters from the Hugging Face Hub, every byte checked."),
}
"""Command -> (module of this package, one line of help). The function is named after the command."""


class LazyGroup(click.Group):
    """A group that imports a command's module only to run it or to show its own help."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            _require_working_folder()
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise click.Abort from error  # of a bare one click makes an empty line

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"{__package__}.{COMMANDS[cmd_name][0]}")
        command = getattr(module, f"{cmd_name}_command")
        assert isinstance(command, click.Command)
        for each in (command, *(command.commands.values() if isinstance(command, click.Group) else ())):
            present = {parameter.name for parameter in each.params}
            each.params.extend(option for option in _common_options() if option.name not in present)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            import difflib

            close = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean {close[0]}?" if close else "plyfold --help lists the commands"
            raise ConfigError(f"no such command: {name}", expected=", ".join(COMMANDS), next_step=hint)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


def _common_options() -> list[click.Option]:
    def quiet(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        if value:
            set_verbosity(-1)

    def verbose(ctx: click.Context, param: click.Parameter, value: int) -> None:
        if value:
            set_verbosity(value)

    def debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        if value:
            ctx.find_root().meta["debug"] = True

    return [
        click.Option(
            ["-q", "--quiet"],
            is_flag=True,
            expose_value=False,
            callback=quiet,
            help="Only the result, warnings and errors.",
        ),
        click.Option(["-v", "--verbose"], count=True, expose_value=False, callback=verbose, help="More messages."),
        click.Option(["--debug"], is_flag=True, expose_value=False, callback=debug, help="Show tracebacks."),
    ]


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="plyfold")
def plyfold() -> None:
    """Train a curriculum as separate QLoRA adapters; compose, serve and score any subset of its stages."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with the code of design's table: 0, or that of the error."""
    _open_streams()
    try:
        code = run(sys.argv[1:] if arguments is None else list(arguments))
    except SystemExit as exit_request:  # a process that ends for the first one's error
        code = int(exit_request.code or 0)
    except KeyboardInterrupt:  # while an error was told
        click.echo("interrupted", err=True)
        code = INTERRUPTED
    end_quietly()  # what the command has opened is closed
    serves = (sys.argv[1:] if arguments is None else list(arguments))[:1] in (["serve"], ["rollouts"])
    if serves or int(os.environ.get("WORLD_SIZE", "1")) > 1:  # a server is gone when it says so, torch takes its time
        _end_at_once(code)
    sys.exit(code)


def _open_streams() -> None:
    """Let nothing fail for where its output goes: into a closed stream (`>&-`), or one that cannot spell a letter."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for as long as the process lives
    if isinstance(sys.stdout, io.TextIOWrapper):  # stderr spells what it lacks as it is
        sys.stdout.reconfigure(errors="replace")


def _end_at_once(code: int) -> NoReturn:
    """End this process, one of several or a server's, without taking its interpreter down piece by piece.

    Native threads outlive the run (Gloo's wherever DDP still holds its group, Arrow's). One that asks for the
    interpreter while it goes aborts the process, and the launcher calls a finished run a failed one
    (github.com/pytorch/pytorch/issues/190489, github.com/apache/arrow/issues/34314).
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def merge() -> None:
    """The console script `merge`: the same as `plyfold merge`."""
    main(["merge", *sys.argv[1:]])


def run(arguments: list[str]) -> int:
    """Run one command line.

    Returns:
        The exit code. Every error has been printed to stderr, without a traceback unless `--debug` is given.
    """
    debug = "--debug" in arguments
    try:
        allow_interrupts()
        result: Any = plyfold.main(args=arguments, prog_name="plyfold", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except PlyfoldError as error:
        return _report(error, debug)
    except click.exceptions.Exit as exit_request:
        return exit_request.exit_code
    except click.ClickException as error:
        said = io.StringIO()
        error.show(said)
        click.echo(printable(said.getvalue()), nl=False, err=True)
        return error.exit_code
    except (KeyboardInterrupt, click.exceptions.Abort):
        end_quietly()
        click.echo("interrupted; what was complete is kept, run the same command again to continue", err=True)
        return INTERRUPTED
    except OSError as error:
        if error.errno in NO_PATH:
            return _report(no_path(error.filename or ".", error.errno), debug)
        for numbers, told in ((DISK_FULL, disk_full), (NOT_ALLOWED, not_allowed), ({errno.ENOLCK}, no_locks)):
            if error.errno in numbers:
                clear = told(Path(error.filename or "."))
                clear.__cause__ = error
                return _report(clear, debug)
        return _report(_unexpected(error), debug)
    except Exception as error:  # the last line of defence: a user sees one error, not a traceback
        return _report(_unexpected(error), debug)


def _require_working_folder() -> None:
    """Refuse to start in a folder that was removed: no relative path means anything, and MKL ends the process.

    Raises:
        NotFoundError: It is gone.
    """
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise NotFoundError(
            "the folder this was started in is gone",
            where=os.environ.get("PWD", ""),
            next_step="cd to one that is there",
        ) from error


def _unexpected(error: Exception) -> FailedError:
    if ran_out_of_memory(error):
        wrapped = FailedError(
            "out of memory; what was complete is kept",
            found=str(error).split("\n")[0][:300],
            next_step="smaller batches or lengths (eval.batch_size, eval.max_new_tokens), or a larger device",
        )
    else:
        wrapped = FailedError(
            f"unexpected {type(error).__name__}: {error}",
            next_step="run it again with --debug and report the traceback",
        )
    wrapped.__cause__ = error
    return wrapped


def _report(error: PlyfoldError, debug: bool) -> int:
    if debug:
        click.echo(printable("".join(traceback.format_exception(error))), err=True)
    print_error(error)
    return error.exit_code
