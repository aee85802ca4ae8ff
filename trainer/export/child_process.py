"""Work in a process of its own, whose memory is given back at its end."""

import signal
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from typing import Any

from trainer.errors import TrainError
from trainer.node.output import quiet


def apart(work: Callable[..., Any], *arguments: Any) -> Any:
    """What `work` gives in a fresh process, which ends with this call, interrupted or not. Raises its TrainError or
    OSError."""
    context = get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, work, arguments))
    process.start()
    theirs.close()
    try:
        found = ours.recv()
    except EOFError as error:
        process.join()
        raise TrainError(
            f"the comparison ended with {process.exitcode} without a word: perhaps it was killed for lack of memory",
            "merge with --no-check",
        ) from error
    finally:
        process.kill()
        process.join()
    if isinstance(found, Exception):
        raise found
    return found


def _answer(there: Any, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it here, too; who started this ends it
    quiet()
    try:
        there.send(work(*arguments))
    except (TrainError, OSError) as error:
        there.send(error)
    except Exception:
        there.send(RuntimeError(traceback.format_exc()))
