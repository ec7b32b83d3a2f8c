"""Run in a kernel before its first cell: writes down which files the kernel reads. Standard library only."""

import os
import sys


def note(log: str) -> None:
    """From now on append to the file log the path of every file that this process opens to read, once each."""
    seen = set()
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def opened(event, arguments):
        if event == "open" and isinstance(arguments[0], str) and (arguments[2] or 0) & 3 != os.O_WRONLY:
            path = os.path.abspath(arguments[0])
            if path not in seen:
                seen.add(path)
                os.write(out, f"{path}\n".encode(errors="surrogateescape"))

    sys.addaudithook(opened)
