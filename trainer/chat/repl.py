"""A conversation turn by turn: what is typed is a question, the result of a call, or a command."""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainer.chat.history import History, load_chat, save_chat
from trainer.chat.interrupt import Interrupt
from trainer.chat.problems import explained
from trainer.chat.session import ChatSession, Spoken
from trainer.chat.terminal import Terminal
from trainer.data.formats.images import MARK
from trainer.data.message import Message
from trainer.data.own_template import openai_messages
from trainer.errors import ConfigError, TrainError

INTERRUPTED = 130
HELP = """\
A line is a message. Several lines: end each but the last with \\, or put them between two lines of \"\"\".
/undo          take the last question and its answer back
/redo          bring them back
/retry         ask the last question again
/edit [TEXT]   change the last question to TEXT, and ask that
/system [TEXT] show the system message, or change it; "/system -" removes it
/tool RESULT   what a called function returned; after a call any message is that
/clear         begin anew
/save FILE     write the conversation as a row that training can read
/load FILE     go on with such a conversation
/help          this
/quit          end, as Ctrl-D does
Ctrl-C ends an answer, and keeps what there is of it. A message that begins with / is written with //."""


class Repl:
    """One conversation. `stats`: tell of each answer's tokens and speed."""

    def __init__(
        self,
        session: ChatSession,
        interrupt: Interrupt,
        terminal: Terminal,
        history: History,
        stats: bool,
    ) -> None:
        self.session, self.interrupt, self.terminal, self.history = session, interrupt, terminal, history
        self.stats = stats
        self._results: list[Message] = []
        self._commands: dict[str, Callable[[str], None]] = {
            "undo": self._undo, "redo": self._redo, "retry": self._retry, "edit": self._edit, "system": self._system,
            "tool": self._tool, "clear": self._clear, "save": self._save, "load": self._load, "help": self._help,
        }  # fmt: skip

    def run(self) -> int:
        """Until the end of what is typed; returns the exit code. A mistake in what comes from a file ends it: raises
        TrainError."""
        interrupted = False
        while True:
            try:
                text = self.terminal.read(self._prompt())
            except KeyboardInterrupt:
                if interrupted or not self.terminal.is_person:
                    return INTERRUPTED
                interrupted = True
                self.terminal.note("\n(Ctrl-C again ends the chat)")
                continue
            interrupted = False
            if text is None or text.strip() == "/quit":
                return 0
            try:
                with explained():
                    self._take(text)
            except TrainError as error:
                if not self.terminal.is_person:
                    raise
                self.terminal.error(error)

    def once(self, text: str) -> int:
        """One question; only the answer is written. Returns the exit code. Raises TrainError."""
        with explained():
            spoken = self._ask([self._question(text)])
        return INTERRUPTED if spoken.ended == "told" else 0

    def _prompt(self) -> str:
        due = self.history.calls[len(self._results) :]
        return f"result of {due[0]}> " if due else "> "

    def _take(self, text: str) -> None:
        if text.startswith("/") and not text.startswith("//"):
            name, _, rest = text[1:].partition(" ")
            if name.strip() not in self._commands:
                allowed = ", ".join(f"/{known}" for known in [*self._commands, "quit"])
                raise ConfigError(f"got /{name}, allowed: {allowed}", "a message that begins with / is written with //")
            self._commands[name.strip()](rest.strip())
        elif not text.strip():
            return
        elif self.history.calls:
            self._tool(text)
        else:
            self._ask([self._question(text[1:] if text.startswith("//") else text)])

    def _question(self, text: str) -> Message:
        return Message("user", text if self.history.exchanges else self._with_marks(text))

    def _with_marks(self, text: str) -> str:
        """The first question, which the images belong to."""
        return text if MARK in text else f"{MARK}\n" * len(self.history.images) + text

    def _ask(self, asked: Sequence[Message]) -> Spoken:
        """Have it answered. What fails, or is interrupted before its first token, has not been said."""
        streams = not self.history.tools or self.terminal.out.isatty()
        show = self.terminal.write if streams else lambda text: None
        with self.interrupt.noted():
            spoken = self.session.say(self.history.messages(asked), self.history.tools, self.history.images, show)
        self._results = []
        self._show_end(spoken.message, streams=streams)
        self._tell(spoken)
        if spoken.message.content or spoken.message.calls:
            self.history.add(asked, spoken.message)
        else:
            self.terminal.note("(no answer: the question is taken back)")
        return spoken

    def _show_end(self, message: Message, *, streams: bool) -> None:
        """What was not shown while it came. For programs a message with calls is one line of JSON, text and all."""
        if not message.calls:
            self.terminal.write("\n" if streams else f"{message.content}\n")
            return
        if streams and message.content:
            self.terminal.write("\n")
        self.terminal.calls(message.calls, _json_line(message))

    def _tell(self, spoken: Spoken) -> None:
        if spoken.ended == "told":
            self.terminal.note("(interrupted)")
        elif spoken.ended == "length":
            self.terminal.note(f"(cut after {spoken.tokens} tokens: --max-new-tokens, or the end of the context)")
        if self.stats:
            self.terminal.note(spoken.stats())

    def _undo(self, _: str) -> None:
        exchange = self.history.undo()
        self._results = []
        said = exchange.asked[-1].content if exchange and exchange.asked else ""
        self.terminal.note(f"(taken back: {said})" if exchange else "(nothing to take back)")

    def _redo(self, _: str) -> None:
        exchange = self.history.redo()
        self._results = []
        self.terminal.note(exchange.answer.content if exchange else "(nothing to bring back)")

    def _retry(self, _: str) -> None:
        self._again(self._last())

    def _edit(self, text: str) -> None:
        last = self._last()
        if not text and self.terminal.is_person:
            with suppress(KeyboardInterrupt):
                text = self.terminal.read("edit> ", last[-1].content) or ""
        if not text:
            raise ConfigError("/edit: got no text, allowed: /edit TEXT")
        is_first = len(self.history.exchanges) == 1
        self._again([*last[:-1], last[-1]._replace(content=self._with_marks(text) if is_first else text)])

    def _again(self, asked: Sequence[Message]) -> None:
        """Ask this in place of the last question, which stays when that fails."""
        known = self.history.exchanges.pop()
        count = len(self.history.exchanges)
        try:
            self._ask(asked)
        finally:
            if len(self.history.exchanges) == count:
                self.history.exchanges.append(known)

    def _last(self) -> tuple[Message, ...]:
        if not self.history.exchanges or not self.history.exchanges[-1].asked:
            raise ConfigError("got no question yet, allowed: /retry and /edit after one")
        return self.history.exchanges[-1].asked

    def _system(self, text: str) -> None:
        if text:
            self.history.system = "" if text == "-" else text
        self.terminal.note(f"system: {self.history.system}" if self.history.system else "(no system message)")

    def _tool(self, text: str) -> None:
        calls = self.history.calls
        if not calls:
            raise ConfigError("/tool: got a result, but the last answer calls nothing, allowed: it after a call")
        self._results.append(Message("tool", text))
        if len(self._results) == len(calls):
            results, self._results = self._results, []
            self._ask(results)

    def _clear(self, _: str) -> None:
        self.history.clear()
        self._results = []

    def _save(self, name: str) -> None:
        save_chat(_file("/save", name), self.history.messages(), self.history.tools)
        self.terminal.note(f"written: {name}")

    def _load(self, name: str) -> None:
        chat = load_chat(_file("/load", name))
        self.history.replace(chat.messages, chat.tools)
        self._results = []
        self.terminal.note(f"({len(self.history.exchanges)} exchanges from {name})")

    def _help(self, _: str) -> None:
        self.terminal.note(HELP)


def _file(command: str, name: str) -> Path:
    if not name:
        raise ConfigError(f"{command}: got no file, allowed: {command} FILE")
    return Path(name).expanduser()


def _json_line(message: Message) -> str:
    """A message with calls as OpenAI's API gives it."""
    found: dict[str, Any] = openai_messages([message])[0]
    return json.dumps(found, ensure_ascii=False)
