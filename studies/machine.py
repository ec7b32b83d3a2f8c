"""What a runner, which owns its process, does with the machine, and says of it where something ends a command."""

import contextlib
import ctypes
import errno
import functools
import re

import torch

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
NO_MEMORY = re.compile(r"can't allocate memory|cannot allocate memory|out of memory|unable to allocate", re.I)
KILLED = ("TerminatedWorkerError", "BrokenProcessPool")  # joblib's and loky's, for a process that is gone
LESS = "lower --jobs, close other programs, or use a machine with more memory"


def explained(error: BaseException) -> str:
    """The cause and the cure of what ended a command, in one line; empty for an error that is a defect of the code."""
    text = " ".join(str(error).split())
    memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
    if memory or (isinstance(error, RuntimeError | OSError) and NO_MEMORY.search(text)):
        return f"no memory is left: {LESS}"
    if type(error).__name__ in KILLED:
        return f"a process that trained was killed, most likely because no memory was left: {LESS}"
    if isinstance(error, OSError) and error.errno in FULL:
        return f"no space is left on the disk ({text}): free some; what had finished is recorded"
    if isinstance(error, OSError) and error.errno in READ_ONLY:
        return (
            f"{error.filename or 'a file'} cannot be written ({error.strerror}): copy the project to a folder of yours"
        )
    return text if isinstance(error, ValueError | OSError | FloatingPointError) else ""


@functools.cache
def reuse_memory() -> None:
    """Keep freed memory for the next tensors: to hand a large one back to the system and to ask for fresh pages
    costs a step on a CPU up to a third of its time. It changes the whole process, so a runner asks for it, never a
    training. Does nothing where the C library is not glibc."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # macOS lacks mallopt, Windows the library None
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: no tensor in a mapping of its own
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: nothing goes back
        mallopt(-2, 2**26)  # M_TOP_PAD: the heap grows by 64 MiB at a time
