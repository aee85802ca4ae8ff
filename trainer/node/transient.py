"""Which trouble may be gone at the next start: a server or a file system that does not answer, or that is out of order.
What is missing, forbidden or malformed stays so, and no restart mends it."""

import errno
import socket
from collections.abc import Iterator

from trainer.errors import ConfigError, TrainError, UnreachableError

_ERRNOS = {
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.EPIPE, errno.ECONNREFUSED,
    errno.ECONNRESET, errno.ECONNABORTED, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH,
}  # fmt: skip
_STATUSES = {408, 425, 429}  # of HTTP, beside those from 500 on
# by name: base classes of httpx and aiohttp, of which a machine need not have both
_TRANSPORT = {"TransportError", "ClientConnectionError"}


def read_error(message: str, error: BaseException, hint: str | None = None) -> TrainError:
    """What to raise for something that could not be read: UnreachableError when a restart may find it, else
    ConfigError."""
    if is_passing(error):
        return UnreachableError(message, "a restart tries again; if it stays so, look at the network or the volume")
    return ConfigError(message, hint)


def is_passing(error: BaseException) -> bool:
    """Whether the same attempt may succeed later, by an error and those that caused it."""
    return any(_is_passing(one) for one in _chain(error))


def _is_passing(error: BaseException) -> bool:
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int):
        return status >= 500 or status in _STATUSES
    is_bare = isinstance(error, ConnectionError) and error.errno is None  # the words of a library, not of the system
    if is_bare or isinstance(error, LocalEntryNotFoundError):
        return not constants.HF_HUB_OFFLINE  # with which the hub is not asked
    if isinstance(error, TimeoutError | socket.gaierror):
        return True
    is_transport = any(kind.__name__ in _TRANSPORT for kind in type(error).__mro__)
    return is_transport or (isinstance(error, OSError) and error.errno in _ERRNOS)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
