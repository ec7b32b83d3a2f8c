"""Where files lie, and the two settings of the environment: PROFILE and RETRAIN."""

import os
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent


def smoke() -> bool:
    """PROFILE=smoke: everything in miniature, in .smoke/. Raises ValueError for any other value."""
    return _setting("PROFILE", "smoke")


def retrain() -> bool:
    """RETRAIN=1: train again what is recorded, into results/again/. Raises ValueError for any other value."""
    return _setting("RETRAIN", "1")


def _setting(name: str, on: str) -> bool:
    value = os.environ.get(name, "")
    if value not in ("", on):
        raise ValueError(f"{name}={value} is unknown: leave it out or use {name}={on}")
    return value == on


def folder(name: str) -> Path:
    """The project's results/, figures/, notebooks/ or report/; in the smoke profile its copy in .smoke/."""
    return (PROJECT / ".smoke" if smoke() else PROJECT) / name


def write(path: Path, content: str | bytes) -> None:
    """Write whole or not at all, also on a full disk. Raises OSError."""
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        part.replace(path)
    except OSError as error:
        raise OSError(f"{path} cannot be written ({error.strerror}): free space or make it writable") from None
    finally:
        if part.exists():  # in a read-only folder there is none to delete
            part.unlink()
