"""The run folder: what this machine knows of each run it launched.

`$LAUNCH_HOME/runs/ID/` (default `~/.local/share/launch`) holds `run.json` (the record, see record.py), `render.yaml` or
`render.sh` (what was sent), `logs/` (archived or live), `code` (see code_store.py) and, below `results/`, the small
files of the run's output folder. Plain files; two processes may use them at once: a run id is claimed by creating its
folder, and files are replaced whole. Both are atomic on NFS too, so machines may share the folder; no lock is needed
for it. (A local run holds a flock as long as it lives; where a file system has none, `launch submit` of a local job
says so.)

`$LAUNCH_HOME/refused.json` is there while the last job that was to be started was refused: then no other run is meant
by a command that names none.
"""

import dataclasses
import datetime
import json
import os
import shlex
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex

from launcher.errors import LaunchError, NotFoundError
from launcher.runs.code_store import CodeStore
from launcher.runs.record import End, Outputs, Run, read_record, record_text

SMALL_FILE = 4 * 2**20
SHOWN_MATCHES, SHOWN_REASON = 10, 300


class RunStore:
    """The folder of all runs."""

    def __init__(self, home: Path, again: Callable[[str], str] = "launch status {}".format) -> None:
        """`again`: the command to type for a run of this id."""
        self.root, self._again = home / "runs", again
        self.code = CodeStore(home)
        self._refused = home / "refused.json"

    def folder(self, run_id: str) -> Path:
        """The folder of a run, whether it exists or not."""
        return self.root / run_id

    def first_free(self, run_id: str, taken: Collection[str] = ()) -> str:
        """`run_id`, or the first of `run_id-2`, `run_id-3`, ... that no run has and that is not in `taken`."""
        candidate, count = run_id, 1
        while candidate in taken or self.folder(candidate).exists():
            count += 1
            candidate = f"{run_id}-{count}"
        return candidate

    def claim(self, run_id: str) -> bool:
        """Make the run's folder; False when somebody has it already. Atomic between processes. Raises LaunchError when
        nothing can be written there."""
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                self.folder(run_id).mkdir(mode=0o700)
            except FileExistsError:
                return False
            (self.folder(run_id) / "logs").mkdir(mode=0o700)
        except OSError as error:
            raise LaunchError(f"{self.root}: run folders cannot be made: {error.strerror}",
                              "name a folder of your own: export LAUNCH_HOME=FOLDER") from error
        return True

    def forget(self, run_id: str) -> None:
        """Remove the folder of a run that was never sent, and its code when no other run needs it."""
        shutil.rmtree(self.folder(run_id), ignore_errors=True)
        with suppress(OSError):  # `launch prune` finds it
            self.code.sweep()

    def remove(self, run_id: str) -> None:
        """Remove all that this machine has of a run that has ended. Raises LaunchError when something stays."""
        try:
            shutil.rmtree(self.folder(run_id))
            self.code.sweep()
        except FileNotFoundError:
            return  # another process was faster
        except OSError as error:
            raise LaunchError(f"{self.folder(run_id)}: cannot be removed: {error.strerror}",
                              f"make it writable, then remove the rest: {_removal(self.folder(run_id))}") from error

    def drop_secrets(self, run_id: str) -> None:
        """Remove the secrets of a run that has ended; one that is started again needs them."""
        (self.folder(run_id) / "secrets.env").unlink(missing_ok=True)

    def save(self, run: Run) -> None:
        """Write `run.json`, whole or not at all."""
        write_whole(self.folder(run.run_id) / "run.json", record_text(run))

    def note_end(self, run: Run, end: End | None) -> bool:
        """Write down how a run has ended, unless somebody has already; None: it was started again. Whether something
        was written: not over a record that a submit is about to complete."""
        found = _read(self.folder(run.run_id) / "run.json")
        if not isinstance(found, Run) or not found.was_sent:
            return False
        before = found.end
        if before and end and (before.state.ended or not end.state.ended):
            return False
        if before == end:
            return False
        self.save(dataclasses.replace(found, end=end))
        return True

    def all(self) -> list[Run]:
        """Every submitted run, oldest first. Records that cannot be used are left out, see `damaged`."""
        return _sorted(self._records())

    def damaged(self) -> dict[str, str]:
        """Run ids whose record cannot be used, and why."""
        return {run_id: why for run_id, why in sorted(self._records().items()) if isinstance(why, str)}

    def find(self, reference: str | None) -> Run:
        """A run by id, by a start of its id that no other has, or by handle; the latest when None. Raises
        NotFoundError, also where the latest start was refused, and LaunchError when the record is damaged."""
        run = self._latest() if reference is None else self.lookup(reference)
        if run is None:
            raise NotFoundError(f"no run {reference!r} in {self.root}", "list them: launch list")
        return run

    def lookup(self, reference: str) -> Run | None:
        """As `find`, but None when there is no such run."""
        records = self._records()
        handles = {run.handle: run.run_id for run in _sorted(records)}
        wanted = handles.get(reference, reference)
        matches = [wanted] if wanted in records else _starting_with(wanted, records)
        if len(matches) > 1:
            shown = matches[:SHOWN_MATCHES] + (["..."] if len(matches) > SHOWN_MATCHES else [])
            raise NotFoundError(f"{reference!r} is ambiguous: it is the start of {', '.join(shown)}",
                                "type more of it; list them: launch list")
        found = records[matches[0]] if matches else None
        if isinstance(found, str):
            folder = self.folder(matches[0])
            raise LaunchError(f"{folder}/run.json: {found}",
                              f"use the launch that wrote it, or remove what is left of the run: {_removal(folder)}")
        return found

    @contextmanager
    def refusal_noted(self, job: Path) -> Iterator[None]:
        """Around the start of a run: a failure is written down until a later start succeeds, so that a command without
        a run does not act on an older one."""
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            with suppress(OSError, LaunchError):  # the failure itself is what the user must see
                self._refused.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                refusal = {"job": str(job), "at": now(), "why": _in_short(error)}
                write_whole(self._refused, json.dumps(refusal) + "\n")
            raise
        with suppress(OSError):
            self._refused.unlink(missing_ok=True)

    def _latest(self) -> Run:
        runs = self.all()
        if refusal := self._refusal():
            raise NotFoundError(f"{refusal['job']} was not started at {refusal['at'][:19]}Z: {refusal['why']}",
                                f"the run before it: {self._again(runs[-1].run_id)}" if runs else "start it again")
        if not runs:
            raise NotFoundError(f"no runs in {self.root}", "start one: launch submit JOB.yaml")
        return runs[-1]

    def _refusal(self) -> dict[str, str] | None:
        """What `refusal_noted` has written down; None when there is nothing, or nothing whole."""
        with suppress(OSError, ValueError, TypeError, KeyError):
            values = json.loads(self._refused.read_text(encoding="utf-8"))
            return {name: str(values[name]) for name in ("job", "at", "why")}
        return None

    def _records(self) -> dict[str, "Run | str"]:
        """Run or the reason why there is none, by run id; not of a folder that is just being made or removed."""
        found = {path.parent.name: _read(path) for path in self.root.glob("*/run.json")}
        return {run_id: record for run_id, record in found.items() if record is not None}

    def collect_results(self, run: Run) -> None:
        """Copy the small files of the run's output folder into the run folder, where they can be reached; not of a
        folder that another run has written last. Raises LaunchError."""
        if run.outputs is None or run.outputs.folder is None or _owner(run.outputs) not in (None, run.run_id):
            return
        if not self.folder(run.run_id).is_dir():  # it was removed while its log was followed
            return
        source = Path(run.outputs.folder)
        try:
            for path in {path for pattern in run.outputs.patterns for path in source.glob(pattern)}:
                if path.is_file() and path.stat().st_size <= SMALL_FILE:
                    target = self.folder(run.run_id) / "results" / path.relative_to(source)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(path, target)
        except OSError as error:
            raise LaunchError(f"{source}: its small files cannot be copied to {self.folder(run.run_id)}: "
                              f"{error.strerror}") from error


def _owner(outputs: Outputs) -> str | None:
    """The run that an output folder belongs to; None when that cannot be known."""
    if outputs.folder is None or outputs.owner_file is None:
        return None
    try:
        found = json.loads((Path(outputs.folder) / outputs.owner_file).read_text(encoding="utf-8"))["run"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return str(found)


def launch_home(environ: Mapping[str, str]) -> Path:
    """`$LAUNCH_HOME`, else `~/.local/share/launch`."""
    if environ.get("LAUNCH_HOME"):
        return Path(environ["LAUNCH_HOME"]).absolute()
    return Path(environ.get("HOME") or Path.home()) / ".local/share/launch"


def now() -> str:
    """UTC, RFC 3339, microseconds: sorts as text."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")


def write_whole(path: Path, text: str, mode: int = 0o600) -> None:
    """Replace `path` by `text`: a reader sees the old file or the new one, never a part. Raises LaunchError."""
    part = path.with_name(f".{path.name}.{os.getpid()}-{token_hex(4)}.part")  # machines that share a folder share pids
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # some file systems would rename first and write later
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise LaunchError(f"{path}: cannot be written: {error.strerror}") from error


def _removal(folder: Path) -> str:
    """The command that removes a run's folder, and no other where its path has blanks."""
    return shlex.join(["rm", "-r", str(folder)])


def _starting_with(start: str, run_ids: Collection[str]) -> list[str]:
    return sorted(run_id for run_id in run_ids if start and run_id.startswith(start))


def _in_short(error: BaseException) -> str:
    """Why a job was not started, in a line."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    first, *more = (str(error).splitlines() or [type(error).__name__])
    return first[:SHOWN_REASON] + (f" (and {len(more)} more)" if more else "")


def _sorted(records: Mapping[str, Run | str]) -> list[Run]:
    return sorted((run for run in records.values() if isinstance(run, Run)), key=lambda run: (run.created, run.run_id))


def _read(path: Path) -> Run | str | None:
    """A run, why its record cannot be used, or None when it is just being removed."""
    try:
        return read_record(path.read_bytes(), path.parent.name)
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except ValueError as error:
        return str(error)
