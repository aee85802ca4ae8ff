"""Somebody at a terminal: a trainer's command on a pty of its own, in a process that has the libraries loaded."""

import os
import pty
import re
import select
import sys
import time

from tests.trainer import warm


class Person:
    """Runs `trainer.cli ARGUMENTS`."""

    def __init__(self, *arguments):
        self.master, self.slave = pty.openpty()  # which stays open here: without any the master cannot be read
        name = os.ttyname(self.slave)
        self.process = warm.SERVER.Process(target=_sit_down, args=(name, list(arguments)), daemon=True)
        self.process.start()
        self.seen = ""

    def expect(self, pattern):
        """Wait for it behind what was expected before."""
        deadline = time.monotonic() + warm.PATIENCE_S
        while not (found := re.search(pattern, self.seen)):
            assert time.monotonic() < deadline and self.process.is_alive(), self.seen
            if select.select([self.master], [], [], 0.2)[0]:
                self.seen += os.read(self.master, 65536).decode(errors="replace")
        self.seen = self.seen[found.end() :]

    def type(self, text):
        os.write(self.master, text.encode())

    def interrupt(self, pattern=None):
        """Ctrl-C, until this is said or the command ends: readline tells of one that came just before it waits only
        with the next."""
        while self.process.is_alive() and not (pattern and re.search(pattern, self.seen)):
            self.type("\x03")
            while select.select([self.master], [], [], 1)[0]:
                self.seen += os.read(self.master, 65536).decode(errors="replace")
        if pattern:
            self.expect(pattern)

    def code(self):
        self.process.join(warm.PATIENCE_S)
        return self.process.exitcode


def _sit_down(name, arguments):
    os.setsid()
    terminal = os.open(name, os.O_RDWR)  # becomes the session's own: Ctrl-C is a signal here
    for number in (0, 1, 2):
        os.dup2(terminal, number)
    sys.stdin, sys.stdout, sys.stderr = map(os.fdopen, (0, 1, 2), "rww")
    os.environ["TERM"] = "dumb"
    from trainer.cli import main

    os._exit(main(arguments))
