"""The checklist of what the assignment asks for."""

import json

import pytest

from report import checklist, submission


def test_everything_that_is_asked_for_is_there_or_named_as_missing():
    rows = checklist.checklist()
    assert len(rows) == len(checklist.DEMANDS) and {len(row) for row in rows} == {len(checklist.COLUMNS)}
    assert {row[-1] for row in rows} <= {"yes", "no"}
    assert all(any(what in row[1] for row in rows) for what in ("screenshots", "Python"))


def test_headings_are_looked_for(project):
    (project / "report").mkdir()
    cells = [{"source": ["## Results {#sec:results}\n", "text"]}]
    (project / "report" / "report.ipynb").write_text(json.dumps({"cells": cells}))
    assert checklist.sections("Results") and not checklist.sections("Results", "Conclusion") and not checklist.pdf()


@pytest.mark.parametrize("forgotten", ["lib/heads", "tests"])
def test_a_folder_that_the_zip_forgets_is_seen(monkeypatch, forgotten):
    assert checklist.code()
    monkeypatch.setattr(submission, "CODE", tuple(part for part in submission.CODE if part != forgotten))
    assert not checklist.code()
