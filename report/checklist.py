"""What the assignment S4 asks for and where this project has it: a checklist, and no evidence about losses."""

import json

from lib import paths
from report import submission


def sections(*headings: str) -> bool:
    """Does the report have these headings?"""
    cells = json.loads((paths.PROJECT / "report" / "report.ipynb").read_text(encoding="utf-8"))["cells"]
    lines = {line.split(" {")[0].lstrip("# ") for cell in cells for line in "".join(cell["source"]).splitlines()}
    return set(headings) <= lines


def pdf() -> bool:
    """Is there a PDF report with results and a conclusion?"""
    return (paths.PROJECT / "report" / "report.pdf").exists() and sections("Results", "Conclusion")


def program() -> bool:
    """Are trainings of ArcFace recorded on both data sets?"""
    files = [(paths.PROJECT / "results" / f"{name}.jsonl").read_text(encoding="utf-8") for name in ("mnist", "cifar10")]
    return all(any(json.loads(line)["config"]["head"] == "ArcFace" for line in text.splitlines()) for text in files)


def named() -> bool:
    """Does the zip get the name that is asked for?"""
    return submission.submission_name("Lovelace", "Ada", "1234567") == "Lovelace_Ada_1234567_Project1"


def code() -> bool:
    """Does the zip take every folder that holds Python files?"""
    parts = ("lib", "studies", "course", "benchmarks", "report", "tests")
    files = (path for part in parts for path in (paths.PROJECT / part).rglob("*.py"))
    return {path.parent.relative_to(paths.PROJECT).as_posix() for path in files} <= set(submission.CODE)


def figures() -> bool:
    """Are all figures PNG files?"""
    return {path.suffix for path in (paths.PROJECT / "figures").iterdir()} == {".png"}


DEMANDS = {  # S4's number and what it asks for, where it is met, and what looks whether it is
    ("2", "a report that explains the technique", "report, ArcFace in twenty minutes"): lambda: sections(
        "ArcFace in twenty minutes"
    ),
    ("3", "a PyTorch program for MNIST and CIFAR-10", "`lib/`, `studies/`, and runs on both"): program,
    ("4", "a zip named lastname_firstname_ID_Project1", "`make submission`"): named,
    ("4a", "all Python files", "in the zip, the notebooks as scripts"): code,
    ("4b", "all figures as PNG", "`figures/`, in the zip"): figures,
    ("4c", "a PDF report with results and a conclusion", "`report.pdf`"): pdf,
    ("4c", "its codes", "report, The code explained"): lambda: sections("The code explained"),
    ("4c", "screenshots", "report, The programs at work: recorded output, a page of a notebook"): lambda: sections(
        "The programs at work"
    ),
}


COLUMNS = ("S4", "asked for", "where", "there")


def checklist() -> list[tuple[str, str, str, str]]:
    """S4's demands by its numbers, in ``COLUMNS``: where each is met, and whether it is there."""
    return [(*demand, "yes" if met() else "no") for demand, met in DEMANDS.items()]
