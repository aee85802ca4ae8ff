"""The `launch` command: parse, call, print. Commands are imported when they are called."""

import gc
import importlib
import sys

import click

from launcher import __version__
from launcher.plugins import Plugins

# Importing makes hundreds of thousands of objects and no garbage; looking for some takes a quarter of a render's time.
FEW_COLLECTIONS = 200_000

COMMANDS = {
    "local": "Run a job on this machine, in the foreground.",
    "submit": "Send a job to its cluster; print the run's handle.",
    "render": "Print exactly what submit would send.",
    "logs": "Show what a run printed, or follow it.",
    "status": "Show the state of a run and of its nodes.",
    "list": "List the runs of this machine.",
    "cancel": "End a run.",
    "repair": "Restart the nodes of a run whose machine was lost.",
    "rm": "Remove runs that have ended.",
    "prune": "Remove what runs have left behind.",
    "validate": "Check a job file; report every mistake.",
    "data": "Show the rows of a job as the model sees them.",
    "chat": "Chat with a model, or with what a run has trained.",
    "sample": "Answer a file of prompts, in batches.",
    "merge": "Write what a run has trained as a checkpoint that servers load.",
    "estimate": "Estimate the memory that a job needs, and say whether it fits.",
    "new-model": "Make a model of random weights, for dry runs.",
    "drill": "Inject a fault into a short run, and check that training resumes.",
}


# Verbs of other packages: `name = "module:command"`. They are not in the table of `launch --help`, which stays fast.
VERBS: Plugins[click.Command] = Plugins("launch.verbs", {}, "a click command", lambda name, found: isinstance(
    found, click.Command))


class LazyGroup(click.Group):
    """A group that knows its commands' one-line help without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order a user meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command, and put its line from the table in front of its help."""
        import inspect

        if cmd_name not in COMMANDS:
            return VERBS.load(cmd_name) if cmd_name in VERBS else None
        module = importlib.import_module(f"launcher.commands.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        if command.short_help != COMMANDS[cmd_name]:
            command.short_help = COMMANDS[cmd_name]
            command.help = f"{command.short_help}\n\n{inspect.cleandoc(command.help or '')}"
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table of commands, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Name the nearest command for an unknown one; a known one finds in its context what was typed."""
        import difflib

        name = args[0] if args else ""
        if name and not name.startswith("-") and name not in COMMANDS and name not in VERBS:
            known = [*COMMANDS, *VERBS.names()]
            near = difflib.get_close_matches(name, known, 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            ctx.fail(f"there is no command {name!r}{hint}; there are {', '.join(known)}")
        ctx.obj = tuple(args)
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="launch")
@click.option("--debug", is_flag=True, help="Show Python's traceback of an error.")
def launch(debug: bool) -> None:
    """One job.yaml: fine-tune chat models here, on Slurm or on Kubernetes."""


def main(argv: list[str] | None = None) -> None:
    """Entry point. Exit codes: 0, 2 usage or job file, 3 refused, 4 not found, 5 job failed, 130 interrupted."""
    arguments = sys.argv[1:] if argv is None else argv
    gc.set_threshold(FEW_COLLECTIONS)
    try:
        code = launch.main(arguments, prog_name="launch", standalone_mode=False)
    except click.exceptions.Abort:
        code = 130
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        code = error.exit_code
    except click.ClickException as error:
        code = _report(_usage_error(error), debug=False)
    except KeyboardInterrupt:
        code = 130
    except SystemExit:  # what click makes of a closed pipe, as in `launch logs | head`
        code = 141
    except Exception as error:
        code = _report(error, debug="--debug" in arguments)
    gc.freeze()  # nor does the interpreter's end look through all of it
    sys.exit(code if isinstance(code, int) else 0)


def _usage_error(error: click.ClickException) -> Exception:
    """A mistake in the command line, as every other mistake is shown."""
    from launcher.errors import SpecError

    context = error.ctx if isinstance(error, click.UsageError) else None
    return SpecError(error.format_message(), f"see {context.command_path} --help" if context else None)


def _report(error: Exception, *, debug: bool) -> int:
    from launcher.errors import LaunchError
    from launcher.terminal.ui import show_error

    if debug:
        raise error
    if isinstance(error, LaunchError):
        show_error(error)
        return error.exit_code
    show_error(LaunchError(f"a defect in launch: {type(error).__name__}: {error}",
                           "run it again with `launch --debug ...` and report the traceback"))
    return 1


if __name__ == "__main__":
    main()
