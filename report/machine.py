"""What a command needs of the machine: a home that can be written, and output that takes every letter; and what is said
where memory or space has run out. Standard library only."""

import errno
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
NO_MEMORY = re.compile(r"MemoryError|OutOfMemory|(can't|cannot) allocate memory|out of memory|unable to allocate", re.I)
NO_SPACE = re.compile(r"No space left on device|Disk quota exceeded", re.I)
MORE = "close other programs, or use a machine with more memory"


def any_letter() -> None:
    """Print a question mark for a letter that the output lacks: on Windows a file or pipe has those of one language."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def home() -> None:
    """Give the tools a home. Jupyter, matplotlib and uv keep settings and caches there, and stop where it is missing or
    cannot be written: then it is a folder for temporary files, which is said once."""
    there = os.path.expanduser("~")
    if os.path.isdir(there) and os.access(there, os.W_OK):
        return
    os.environ["USERPROFILE" if os.name == "nt" else "HOME"] = str(_own_folder())
    known = "there is no home folder" if there == "~" or not os.path.isdir(there) else f"{there} cannot be written"
    print(f"{known}: the settings and caches of the tools go to {os.path.expanduser('~')}", file=sys.stderr)


def call(command: list[str], **options) -> int:
    """Run a program and return its exit status. At Ctrl-C, which it gets too, it ends in its own way: JupyterLab asks
    first, a training records what has finished. subprocess.run would kill it a quarter of a second later."""
    with subprocess.Popen(command, **options) as process:
        while True:
            try:
                code = process.wait()
                return code if code >= 0 else 128 - code  # as a shell says which signal it was
            except KeyboardInterrupt:
                pass


def _own_folder() -> Path:
    """The same folder for temporary files at every start, if it is this user's own."""
    user = os.getuid() if hasattr(os, "getuid") else ""
    folder = Path(tempfile.gettempdir(), f"angular-margin-study-{user}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if user == "" or (folder.stat().st_uid == user and not folder.is_symlink()):
            return folder
    except OSError:  # somebody's file
        pass
    return Path(tempfile.mkdtemp())


def explained(error: BaseException) -> str:
    """The cause and the cure of what ends a command, in one line; empty for an error that is a defect of the code."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return f"no memory is left: {MORE}"
    if isinstance(error, OSError) and "No usable temporary directory" in text:
        return "no folder for temporary files can be written: free space, or name one in TMPDIR"
    if isinstance(error, OSError) and error.errno in FULL:
        return f"no space is left on the disk ({text}): free some, then call the same command again"
    if isinstance(error, OSError) and error.errno in READ_ONLY:
        file = error.filename or "a file"
        return f"{file} cannot be read or written ({error.strerror}): copy the project to a folder of your own"
    return text if isinstance(error, ValueError | OSError) else ""


def of_kernel(cause: str) -> str:
    """What a kernel said when a cell failed, and the cure where the machine was the cause."""
    if "Kernel died" in cause or "DeadKernelError" in cause:
        return f"the kernel was killed, most likely because no memory was left: {MORE}"
    if NO_MEMORY.search(cause):
        return f"{cause.rstrip(': ')}: no memory is left: {MORE}"
    if NO_SPACE.search(cause) and "free space" not in cause:
        return f"{cause}: free space on the disk"
    return cause
