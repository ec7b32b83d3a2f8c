"""Fail where .venv is larger than README's table says by more than a tenth. Standard library only."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GB = 2**30  # as du counts them


def stated(readme: str) -> float:
    """The GB on disk that README's table gives for all packages. Raises ValueError if there are none."""
    found = re.search(r"^\| all tests passed [^|]*\|[^|]*\| ([\d.]+) GB", readme, re.M)
    if not found:
        raise ValueError("README's table names no GB for `make test`")
    return float(found[1])


def on_disk(folder: Path) -> float:
    """The GB that a folder takes, a file with several names once."""
    files = (path.lstat() for path in folder.rglob("*"))
    return sum({(file.st_dev, file.st_ino): file.st_blocks * 512 for file in files}.values()) / GB


def compared(folder: Path, allowed: float) -> str:
    """One line on both; an error if the folder is larger by more than a tenth."""
    found = on_disk(folder)
    said = f"{folder.name} takes {found:.1f} GB, and README says {allowed:.1f}"
    return f"error: {said}" if found > 1.1 * allowed else said


if __name__ == "__main__":
    line = compared(ROOT / ".venv", stated((ROOT / "README.md").read_text(encoding="utf-8")))
    sys.exit(line) if line.startswith("error: ") else print(line)
