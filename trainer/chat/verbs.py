"""`trainer.cli chat` and `trainer.cli sample`: from the command line to the exit code."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from trainer.chat.compose import check_target, compose, find_pictures
from trainer.chat.history import History
from trainer.chat.interrupt import Interrupt
from trainer.chat.open import Overrides, open_session, overridden
from trainer.chat.problems import explained
from trainer.chat.prompts import read_prompts
from trainer.chat.repl import Repl
from trainer.chat.results import Printed, Results, mark_of, stamp
from trainer.chat.sample import answer_file, score
from trainer.chat.target import Target, find_target
from trainer.chat.terminal import Terminal
from trainer.data.formats.toolcalls import read_tools
from trainer.data.formats.values import parsed
from trainer.data.message import Message, RowError
from trainer.errors import ConfigError
from trainer.node.output import complain

# destination -> option of an article, which needs all of them
COMPOSING = {"compose": "--compose", "pictures": "--images", "to": "--to"}


def chat(options: argparse.Namespace) -> int:
    """Talk until the end, once, or in an article; returns the exit code. Raises TrainError."""
    if any(getattr(options, name) is not None for name in COMPOSING):
        return write_article(options)
    missing = [path for path in options.images if not path.is_file()]
    if missing:
        raise ConfigError(f"--image: got {missing[0]}, allowed: a file that exists")
    terminal, interrupt = Terminal(sys.stdin, sys.stdout, sys.stderr), Interrupt()
    target, overrides = _wanted(options)
    tools = _tools(options.tools) if options.tools else ()
    with explained():
        session = open_session(
            target,
            overrides,
            terminal.note,
            shown="--image" if options.images else None,
            stopped=lambda: interrupt.requested,
        )
    system = _clean(target.system if options.system is None else options.system)
    history = History(system, tools, options.images)
    repl = Repl(session, interrupt, terminal, history, options.stats)
    if options.once is not None:
        return repl.once(sys.stdin.read().removesuffix("\n") if options.once == "-" else _clean(options.once))
    if history.system:
        terminal.note(f"* system: {history.system}")
    if terminal.is_person:
        terminal.note("* /help lists the commands, Ctrl-D ends")
    return repl.run()


def write_article(options: argparse.Namespace) -> int:
    """An article with pictures, in one file; returns the exit code. Raises TrainError."""
    _require_all(options)
    pictures = find_pictures(options.pictures, _note)
    check_target(options.to)
    target, overrides = _wanted(options)
    system = _clean(target.system if options.system is None else options.system)
    before = [Message("system", system)] if system else []
    with explained():
        session = open_session(target, overrides, _note, shown="--compose")

        def ask(messages: Sequence[Message], images: Sequence[Path]) -> str:
            return session.ask([*before, *messages], images)

        compose(ask, _clean(options.compose), pictures, options.to, _note)
    _note(f"written: {options.to}")
    return 0


def _require_all(options: argparse.Namespace) -> None:
    """Raise ConfigError unless all three of COMPOSING are there, and nothing that has no place beside them."""
    missing = [option for name, option in COMPOSING.items() if getattr(options, name) is None]
    beside = {"--once": options.once is not None, "--image": options.images, "--tools": options.tools}
    given = [option for option, there in beside.items() if there]
    if missing or given:
        got = f"no {' and no '.join(missing)}" if missing else f"{' and '.join(given)} beside it"
        raise ConfigError(
            f"--compose: got {got}, allowed: --compose INSTRUCTION --images FOLDER --to FILE.md or FILE.html",
            "one picture to talk about: --image FILE" if missing == ["--compose", "--to"] else None,
        )


def sample(options: argparse.Namespace) -> int:
    """Answer the prompts of a file; returns the exit code. Raises TrainError."""
    target, overrides = _wanted(options)
    system = _clean(target.system if options.system is None else options.system)
    prompts = read_prompts(options.prompts, system)
    results: Results | Printed = Printed(sys.stdout)
    if options.out:
        asked = [str(prompt) for prompt in prompts]
        mark = mark_of(asked, str(target), vars(overrides), stamp(target.path), stamp(target.adapter))
        results = Results(options.out, mark)
    if results.rows:
        _note(f"* going on after the first {len(results.rows)} answers")
    with explained():
        session = open_session(target, overrides, _note)
    answer_file(session, prompts, results, options.batch_size, _note)
    results.close()
    if line := score(results.rows):
        _note(line)
    if options.out:
        _note(f"written: {options.out}")
    return 0


def _wanted(options: argparse.Namespace) -> tuple[Target, Overrides]:
    overrides = Overrides(**{field.name: getattr(options, field.name) for field in fields(Overrides)})
    return overridden(find_target(options.model, options.adapter, options.job_dir), overrides), overrides


def _tools(path: Path) -> tuple[dict[str, Any], ...]:
    """Functions as OpenAI's API takes them: a list, or one of them. Raises ConfigError."""
    try:
        found = parsed("tools", path.read_text(encoding="utf-8"))
        return read_tools({"tools": [found] if isinstance(found, dict) else found})
    except (OSError, UnicodeDecodeError, RowError) as error:
        allowed = "allowed: a JSON list of functions {name, description, parameters}"
        raise ConfigError(f"--tools: {path}: {error}", allowed) from error


def _clean(text: str) -> str:
    """Words of a command line that are no text in its encoding, as text."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _note(text: str) -> None:
    complain(f"{text}\n")
    sys.stderr.flush()
