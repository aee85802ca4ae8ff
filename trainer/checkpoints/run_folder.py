"""The output folder of a run: it belongs to one run, and one process at a time trains into it.

A marker says that launch has made the folder, a lock says who trains there now. What is there without either is
somebody else's, and is never touched.
"""

import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from trainer.checkpoints.checkpoint import checkpoint_step, is_sealed
from trainer.checkpoints.results import CONFIG, has_result, result_name
from trainer.config.command import VARIABLE, command, undoing
from trainer.config.file import Change, changes, load_run_config, read_sections
from trainer.config.job import MARKER, TrainConfig, config_text
from trainer.errors import ConfigError, TrainError
from trainer.node.files import replace_text
from trainer.node.finish import finished_by, has_finished, unmark_finished
from trainer.node.lock import DEAD_S, Holder, Lock, Sign, submission

OURS = "launch-run."  # how the names of marker and lock begin, behind a dot
LOCK = f".{OURS}lock"
SEAL = ".launch-result"
FRESH = {"lost+found"}  # what a new volume holds
SCHEMA = 1
WAIT_S = 500.0  # for an earlier start of the same run: the peers wait for 600 s
NAMED = 5
LENGTH = ("optimizer.max_steps", "optimizer.epochs")  # a run may go on with others

Tell = Callable[[str], None]


class RunFolder:
    """The output folder that a config names, for the run that the environment names. `dead_s`: how long the holder of
    its lock may be silent on another machine."""

    def __init__(self, config: TrainConfig, environ: Mapping[str, str], tell: Tell, dead_s: float = DEAD_S) -> None:
        self.config, self.environ, self.tell = config, environ, tell
        self.path = Path(config.settings.output_dir or "outputs")
        self.lock = Lock(self.path / LOCK, Holder.me(*submission(environ)), dead_s)
        self._is_mine = False

    def refuse_foreign(self) -> None:
        """Raise ConfigError for a folder that no run of this job could have; looks, and touches nothing."""
        self._refuse_place()
        self._refuse_strangers()

    def claim(self) -> None:
        """Have the folder for this run until `release`: nobody else trains there, and it holds nothing but what launch
        has written, and files that launch never writes. Where something was trained it stays that run's until
        `take_over`. Raises ConfigError, and leaves a folder that it refuses as it was."""
        self.refuse_foreign()
        try:
            self._lock()
            self._refuse_strangers()  # nobody else writes now
            self._refuse_changes()
            if not self._was_trained():
                self._mark()
        except BaseException as error:
            self.release()
            if not isinstance(error, OSError):
                raise
            raise ConfigError(
                f"settings.output_dir: {self.path} cannot be written: {error.strerror}",
                "choose a folder that this user may write, on a mounted volume",
            ) from error

    def take_over(self) -> None:
        """From now on the folder is this run's, which has trained there, and what it held is not its last result.
        Raises TrainError."""
        if self._is_mine:
            return
        try:
            unmark_finished(self.path)  # first: a config with more steps beside the mark would seem to be finished
            self._mark()
        except OSError as error:
            raise TrainError(f"settings.output_dir: {self.path} cannot be written: {error.strerror}") from error

    def release(self) -> None:
        """Whoever comes next may have the folder."""
        self.lock.release()

    def going_on(self) -> str:
        """What to type after a stop."""
        run = self.lock.me.run
        return f"to go on from there: {command(self.environ, '--resume', run)}" if run else "start it again to go on"

    def finished(self) -> str | None:
        """What is to be said when the results of this very configuration are there; None when something is left to do.
        """
        if not (has_finished(self.path) and has_result(self.path, self.config)) or self._changes():
            return None
        again = command(self.environ, "--new")
        return (
            f"nothing is left to train: {self._owner(finished_by(self.path))} has written "
            f"{self.path / result_name(self.config)}; to start over: {again}"
        )

    def _refuse_place(self) -> None:
        """A folder of its own is one in which nothing of the job's lies."""
        for path in (self.path, *self.path.parents):
            if os.path.lexists(path) and not path.is_dir():
                kind = "a link to something that does not exist" if path.is_symlink() else "a file"
                raise self._refused(f"{path} is {kind}" if path != self.path else f"which is {kind}")
        mine = self.path.resolve()
        if Path.cwd().resolve().is_relative_to(mine):
            raise self._refused("which is the job's own folder, or one above it")
        for field, path in _inputs(self.config):
            if path.exists() and path.resolve().is_relative_to(mine):
                raise self._refused(f"in which {field} lies ({path})")
            if field.startswith("data.") and path.is_dir() and mine.is_relative_to(path.resolve()):
                raise self._refused(f"which lies in {field} ({path}), where all files are read as rows")

    def _refuse_strangers(self) -> None:
        names = {name for name in _names(self.path) if not name.lstrip(".").startswith(OURS)}
        marked = (self.path / MARKER).exists()
        strangers = names - FRESH
        if strangers and not marked and not self._is_older():
            raise self._refused(f"which holds what launch has not written ({_listed(strangers)})")
        if marked and CONFIG in names:
            load_run_config(self.path / CONFIG)
        strangers = {name for name in names if self._is_strange(self.path / name, marked=marked)}
        if strangers:
            raise self._refused(f"in which launch has not written {_listed(strangers)}")

    def _is_older(self) -> bool:
        """Whether a launch that left no markers has trained there."""
        try:
            load_run_config(self.path / CONFIG)
        except ConfigError:
            return False
        return True

    def _is_strange(self, path: Path, *, marked: bool) -> bool:
        """Whether it has a name that this run writes, but is not launch's; results had no seal before there were
        markers."""
        if checkpoint_step(path) >= 0:
            return not is_sealed(path)
        return marked and path.name == result_name(self.config) and not is_own(path)

    def _refuse_changes(self) -> None:
        """Where something was trained only the same configuration goes on, but for its length."""
        if not self._was_trained():
            return
        refused = [(change, why) for change in self._changes() if (why := self._problem(change)) is not None]
        marker = _read(self.path / MARKER)
        run = _text(marker.get("run"))
        is_restart = run is not None and run == self.lock.me.run
        if not refused and (is_restart or self.config.runtime.resume == "auto"):
            return
        lines = [f"  {change}{why}" for change, why in refused]
        lines = lines or ["  runtime.resume: never, and something was trained there"]
        typed = _text(marker.get("command"))
        started = f" ({typed})" if typed else ""
        raise ConfigError(
            "\n".join([f"settings.output_dir: got {self.path}, which holds {self._owner(run)}{started}", *lines]),
            self._instead([change for change, _ in refused], run),
        )

    def refuse_fewer(self, steps: int, trained: int) -> None:
        """Raise ConfigError when so many steps, which the data have settled, were passed long ago."""
        if steps < trained:
            raise ConfigError(
                f"optimizer.epochs: got {self.config.optimizer.epochs}, which is {steps} steps of these rows, but "
                f"{trained} are trained; allowed: as many, or more",
                self._instead([], None),
            )

    def _instead(self, refused: list[Change], run: str | None) -> str:
        hint = f"a new run in a folder of its own: {command(self.environ, '--new')}"
        return f"{hint}; to go on with {run}: {undoing(self.environ, refused, '--resume', run)}" if run else hint

    def _changes(self) -> list[Change]:
        """What is trained differently from what is there; epochs say nothing where both name the same max_steps."""
        found = changes(read_sections(self.path / CONFIG), self.config.model_dump(mode="json"))
        by_epochs = self.config.optimizer.max_steps is None or any(one.field == LENGTH[0] for one in found)
        return [one for one in found if by_epochs or one.field != LENGTH[1]]

    def _problem(self, change: Change) -> str | None:
        """What is wrong with a change, besides that it is one; None when the run can go on with it."""
        if change.field not in LENGTH:
            return ""
        trained, steps = max(self._steps_saved(), default=0), self.config.optimizer.max_steps
        if not trained:
            return ", and no checkpoint is left to go on from"
        return f", but {trained} steps are trained" if steps is not None and steps < trained else None

    def _was_trained(self) -> bool:
        return has_finished(self.path) or bool(self._steps_saved())

    def _steps_saved(self) -> list[int]:
        return [checkpoint_step(path) for path in self.path.glob("checkpoint-*") if is_sealed(path)]

    def _lock(self) -> None:
        """Wait for the end of an earlier start of this run, and for a sign of life where that is unknown."""
        self.path.mkdir(parents=True, exist_ok=True)
        said: tuple[Holder, Sign] | None = None
        deadline = time.monotonic() + WAIT_S
        for holder, sign in self.lock.acquire():
            who = f"{self._owner(holder.run)} ({holder})"
            again = holder.same_run(self.lock.me)
            if sign is Sign.ALIVE and not again:
                raise self._refused(f"where {who} is training now", "wait for its end")
            if time.monotonic() > deadline:
                raise TrainError(f"{self.path}: {who}, an earlier start of this run, does not end")
            if said != (holder, sign):
                said = holder, sign
                self.tell(f"{self.path}: {_waiting(who, sign, again=again)}")

    def _mark(self) -> None:
        """Write down that the folder is this run's, and what it trains."""
        result = self.path / result_name(self.config)
        if not (self.path / MARKER).exists() and result.is_dir():
            own(result)
        marker = {
            "schema": SCHEMA,
            "run": self.lock.me.run,
            "job": self.environ.get("LAUNCH_JOB_NAME"),
            "host": socket.gethostname(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "launch": _version(),
            "command": self.environ.get(VARIABLE),
        }
        replace_text(self.path / MARKER, json.dumps(marker, indent=1) + "\n")
        replace_text(self.path / CONFIG, config_text(self.config.model_dump(mode="json")))
        self._is_mine = True

    def _owner(self, run: str | None) -> str:
        return f"run {run}" if run else "another training"

    def _refused(self, why: str, instead: str = "name another one") -> ConfigError:
        again = command(self.environ, "--new")
        return ConfigError(f"settings.output_dir: got {self.path}, {why}; nothing was touched",
                           f"{instead}, or have launch make one: {again}")  # fmt: skip


def own(folder: Path) -> Path:
    """Make a folder for results, or have one that this trainer may write over; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SEAL).touch()
    return folder


def is_own(folder: Path) -> bool:
    """Whether `own` has made the folder, or it is empty."""
    return (folder / SEAL).exists() or (folder.is_dir() and not any(folder.iterdir()))


def _inputs(config: TrainConfig) -> Iterable[tuple[str, Path]]:
    """What a run reads, where that may be a path."""
    data = config.data
    validation = data.validation if isinstance(data.validation, list) else []
    named: list[tuple[str, str | None]] = [("data.sources", source.path) for source in data.sources]
    named += [("data.validation", source.path) for source in validation]
    named += [("image_dir", data.image_dir), ("model.path", config.model.path)]
    return [(field, Path(path).expanduser()) for field, path in named if path and "://" not in path]


def _waiting(who: str, sign: Sign, *, again: bool) -> str:
    if sign is Sign.DEAD:
        return f"{who} is gone without an end; this run takes over"
    if again:
        return f"waiting for the end of {who}, an earlier start of this run"
    return f"locked by {who}; waiting for a sign of life"


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"settings.output_dir: {folder} cannot be read: {error.strerror}",
                          "choose a folder that this user may read and write") from error  # fmt: skip


def _listed(names: set[str]) -> str:
    more = [f"and {len(names) - NAMED} more"] if len(names) > NAMED else []
    return ", ".join([*sorted(names)[:NAMED], *more])


def _read(marker: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(marker.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _version() -> str | None:
    try:
        return version("launch-trainer")
    except PackageNotFoundError:
        return None
