"""What may go wrong while a model answers, as errors that say what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from trainer.data.message import RowError
from trainer.errors import ConfigError, TrainError


@contextmanager
def explained() -> Iterator[None]:
    """Memory that is not there, and what a template cannot write."""
    try:
        yield
    except RowError as error:
        raise ConfigError(str(error)) from error
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _no_memory() from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # torch's allocator on CPUs
            raise
        raise _no_memory() from error


def _no_memory() -> TrainError:
    if not torch.cuda.is_available():
        return TrainError("out of memory on this machine", "choose --quantization nf4, or a smaller model")
    free, total = (f"{size / 2**30:.1f} GiB" for size in torch.cuda.mem_get_info())
    torch.cuda.empty_cache()
    return TrainError(
        f"out of memory: {free} of the GPU's {total} are free",
        "choose --quantization nf4, a shorter conversation or answer (--max-new-tokens), or a smaller --batch-size",
    )
