"""The command line: a thin skin over `rtbench.commands.api`. Commands are imported when they are used, so `--help` stays fast."""

from __future__ import annotations

import importlib
import sys

import click

from rtbench.errors import UserError, unknown

COMMANDS = {
    "run": ("running", "Run what a suite still lacks and show its board."),
    "plan": ("running", "Show what a run would do: stages, time, disk, passes."),
    "board": ("running", "Show a suite's board from what the store has."),
    "parts": ("looking", "List parts, or explain one: its knobs, types, defaults."),
    "show": ("looking", "Show the chain of stages behind a number."),
    "compare": ("running", "By how much one row beats another, paired."),
    "diff": ("looking", "Compare the recipes and values of two rows."),
    "explain": ("evidence", "One page on a number: what was run, why believe it."),
    "verify": ("evidence", "Check stored results again, and their evidence."),
    "evaluate": ("models", "Attack a model trained elsewhere."),
    "export": ("models", "Write a stage's weights to a safetensors file."),
    "data": ("models", "Describe a dataset, or download it."),
    "check": ("looking", "Check parts against the contract of their kind."),
    "doctor": ("looking", "Describe the environment: plugins, GPU, data found."),
    "reindex": ("storing", "Rebuild a store's index from its folders."),
    "merge": ("storing", "Copy the results of another store into this one."),
    "gc": ("storing", "Drop weights that nothing needs any more."),
}


class Lazy(click.Group):
    """Knows its commands by name and help; imports the module of the one that is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"rtbench.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise unknown("command", args[0], COMMANDS)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="rtbench")
def cli() -> None:
    """Which sparse neural networks are still robust, and by how much?

    Start with `rtbench run quick`. Shell completion: `eval "$(_RTBENCH_COMPLETE=bash_source rtbench)"` (or zsh_source, fish_source).
    """


def main() -> None:
    """Exit codes: 0 fine, 1 something failed, 2 a mistake of the user's, 130 interrupted."""
    try:
        code = cli.main(standalone_mode=False)
    except UserError as error:
        print(f"rtbench: {error}", file=sys.stderr)
        code = error.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        print("rtbench: interrupted; run the same command again to continue", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        sys.stderr.close()
        code = 0
    sys.exit(code if isinstance(code, int) else 0)
