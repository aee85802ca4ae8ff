"""The real `launch` command in a process of its own, for tests."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import warm_launch


@dataclass
class Launch:
    """Runs `launch` with its own run folder. `env` is laid over this process's environment."""

    home: Path
    cwd: Path
    env: dict[str, str] = field(default_factory=dict)
    python: str = sys.executable

    def environ(self) -> dict[str, str]:
        """What a command of this launch sees."""
        return {**os.environ, "LAUNCH_HOME": str(self.home), "XDG_CONFIG_HOME": str(self.home / "config"), **self.env}

    def start(self, *args: str, **more: Any) -> "subprocess.Popen[str]":
        """A command that goes on in the background."""
        return subprocess.Popen([self.python, "-m", "launcher.cli", *args], cwd=self.cwd, env=self.environ(), text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)

    def run(self, *args: str, timeout_s: float = 120, stdin: int | None = None) -> "subprocess.CompletedProcess[str]":
        """A command to its end, whatever its exit code. `stdin`: a descriptor in place of this process's."""
        if self.python == sys.executable and "PYTHONPATH" not in self.env and stdin in (None, subprocess.DEVNULL):
            return warm_launch.run(args, self.cwd, self.environ(), timeout_s)
        return subprocess.run([self.python, "-m", "launcher.cli", *args], cwd=self.cwd, env=self.environ(), text=True,
                              capture_output=True, timeout=timeout_s, check=False, stdin=stdin)

    def ok(self, *args: str, timeout_s: float = 120) -> str:
        """The stdout of a command that must end with 0."""
        done = self.run(*args, timeout_s=timeout_s)
        assert done.returncode == 0, f"launch {' '.join(args)} ended with {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def json(self, *args: str) -> list[Any]:
        """The JSON lines that a command prints."""
        return [json.loads(line) for line in self.ok(*args, "--json").splitlines()]

    def run_dir(self, run_id: str) -> Path:
        """The folder of a run."""
        return self.home / "runs" / run_id
