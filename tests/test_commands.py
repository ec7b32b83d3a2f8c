"""What is typed at a prompt: python -m studies, report, lib and the benchmarks, and make."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from test_tuning import record_trials

from lib import device
from report import __main__ as report_main
from report import environment
from report.__main__ import COMMANDS
from report.__main__ import main as report
from studies import __main__ as studies_main
from studies import again, claims, records, replicas, runs, s3
from studies.__main__ import STUDIES
from studies.__main__ import main as studies
from studies.study import Study

ROOT = Path(__file__).resolve().parent.parent


def refused(command, *arguments) -> str:
    """The line with which a command ends that does nothing."""
    with pytest.raises(SystemExit) as ended:
        command([*arguments])
    line = ended.value.code  # which Python prints, with 1 as exit status
    assert isinstance(line, str) and line.startswith("error: ") and "\n" not in line
    return line


@pytest.fixture
def untrained(project, monkeypatch):
    """The empty project, in which nothing may be trained."""
    monkeypatch.setattr(Study, "train", lambda *args, **options: pytest.fail("a study was trained"))
    return project


def files(folder):
    return {path for path in folder.rglob("*") if path.is_file()}


# ---------------------------------------------------------------- python -m studies


def test_list_of_an_empty_folder(project, capsys):
    studies(["--list"])
    out = capsys.readouterr().out
    rows = {line.split()[0]: line for line in out.splitlines() if line}
    assert rows.keys() >= STUDIES.keys() and "0 of 27" in rows["mnist"] and "unknown" in rows["mnist"]
    assert re.search(r" waits +unknown .*\(waits for tuning_mnist: .*lacks 80 of 80 trials", rows["controlled_mnist"])
    assert not files(project)


def test_list_of_what_is_recorded(project, capsys):
    record_trials("mnist")
    runs.MAIN["mnist"].path.write_text((ROOT / "results" / "mnist.jsonl").read_text())
    before = files(project)
    studies(["--list"])
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert re.search(r" 27 of 27 +- ", rows["mnist"]) and re.search(r" 80 of 80 +- ", rows["tuning_mnist"])
    assert re.search(r" 0 of 100 +unknown ", rows["controlled_mnist"])
    assert files(project) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["controled_mnist"], "unknown study 'controled_mnist': `python -m studies --list` names them"),
        (["mnist", "minst"], "unknown study 'minst'"),  # before the first is trained
        (["--jobs"], "argument --jobs: expected one argument"),
        (["--jobs", "many"], "invalid int value: 'many'"),
        (["--jobs", "0"], "--jobs 0: give the number of runs"),
        (["--budget", "0"], "--budget 0: give seconds, more than 0"),
        (["--budget", "nan"], "--budget nan"),
        (["claims", "999"], "there is no claim 999: choose from 1 to"),
        (["claims", "x"], "there is no claim x: choose from 1 to"),
        (["claims", "7", "-1"], "-1"),
        (["--fast"], "unrecognized arguments: --fast"),
    ],
)
def test_studies_refuse_in_one_line(untrained, arguments, message):
    assert message in refused(studies, *arguments) and not files(untrained)


def test_hours_are_those_of_the_same_data_set_and_as_many_epochs(monkeypatch):
    monkeypatch.setattr(records, "commit", lambda: "abc1234")
    here = records.environment(device.best_device())["device"]
    found = {
        runs.recipe("mnist", "ArcFace", seed, epochs=2): {"seconds": 100.0 + seed, "device": here} for seed in range(3)
    }
    found[runs.recipe("mnist", "ArcFace", 9, epochs=2)] = {"seconds": 9000.0, "device": "another"}
    more = [runs.recipe("mnist", "ArcFace", seed, epochs=20) for seed in range(10)]
    assert again.hours(more, {}, found) == f"{10 * 20 * 101 / 2 / 3600:.1f}" == "2.8"
    assert again.hours([runs.recipe("cifar10", "ArcFace")], {}, found) == "unknown"
    assert again.hours([*more, runs.recipe("cifar10", "ArcFace")], found) == "unknown"
    own = {more[0]: {"seconds": 20.0, "device": "another"}}
    assert again.hours(more[1:], own, found) == again.hours(more[1:], own) == "0.1"
    assert again.hours([], {}, found) == "0.0"


def test_hours_of_another_data_set_in_the_same_file_count_for_none(project, capsys):
    (project / "results").mkdir()
    runs_of_mnist = [line for line in (ROOT / "results" / "s1.jsonl").read_text().splitlines() if '"mnist"' in line]
    (project / "results" / "s1.jsonl").write_text("\n".join(runs_of_mnist[:-5]) + "\n")  # some are left to train
    studies(["--list"])
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert re.search(r" \d+\.\d  S1", rows["s1_waterfall_mnist"])
    for name in ("s1_published_cifar10", "s1_same_network_cifar10", "s1_waterfall_cifar10"):
        assert " unknown " in rows[name]


def test_an_unknown_name_is_said_before_a_changed_tree(untrained, monkeypatch):
    monkeypatch.setattr(records, "commit", lambda: "abc1234+")
    assert "unknown study 'nothing'" in refused(studies, "nothing")
    assert "not committed" in refused(studies, "mnist")


@pytest.mark.parametrize("wrong", [["--jobs", "0"], ["--budget", "abc"], ["nothing"], ["claims", "x"]])
def test_data_are_fetched_when_options_and_names_are_right(untrained, monkeypatch, wrong):
    fetched, called = [], []
    monkeypatch.setattr(records, "commit", lambda: "abc1234")
    monkeypatch.setattr(studies_main, "fetch_all", lambda: fetched.append("all"))
    monkeypatch.setattr(report_main, "_call", lambda module, *arguments: called.append([module, *arguments]))
    report_main.study(*wrong)
    assert called == [["studies", "--fetch", *wrong]]
    refused(studies, *called[0][1:])
    assert not fetched
    monkeypatch.setattr(Study, "train", lambda *args, **options: fetched.append("trained"))
    studies(["--fetch", "mnist"])
    assert fetched == ["all", "trained"]
    studies(["--fetch", "--list"])
    assert fetched == ["all", "trained"]


@pytest.mark.parametrize(("name", "value"), [("PROFILE", "foo"), ("RETRAIN", "yes")])
def test_a_wrong_setting_stops_every_command(untrained, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    for arguments in ([], ["--list"], ["mnist"], ["claims"], ["claims", "7"]):
        assert refused(studies, *arguments).startswith(f"error: {name}={value} is unknown: leave it out or use {name}=")
    title = ["Lovelace", "Ada", "1"]
    for arguments in (
        ["execute", "x.ipynb"],
        ["pdf"],
        ["check_name", *title],
        ["submission", *title],
        ["colab", "a/b"],
    ):
        assert refused(report, *arguments).startswith(f"error: {name}={value} is unknown")
    assert refused(report, "build").startswith(f"error: {name}={value} is unknown")
    assert not files(untrained)


def test_a_file_names_the_studies_that_share_it(project, monkeypatch):
    trained = []
    monkeypatch.setattr(Study, "train", lambda self, *args, **options: trained.append(self.name))
    studies(["replicas"])
    assert set(trained) == set(replicas.PLANS) | {study.name for study in s3.STUDIES}
    assert trained.index("s3_search") < trained.index("s3_mnist") and len(trained) == len(set(trained))
    assert trained.index("s3_trials_mnist") < trained.index("s3_wider_mnist") < trained.index("s3_final_mnist")


def test_a_budget_is_for_all_studies_together(project, monkeypatch):
    given = []
    monkeypatch.setattr(Study, "train", lambda self, full, n_jobs, budget: given.append((full, n_jobs, budget)))
    studies(["mnist", "cifar10", "--budget", "100", "--jobs", "3", "--full"])
    assert len(given) == 2 and all(one[:2] == (True, 3) for one in given) and 99 < given[1][2] <= given[0][2] <= 100


def test_an_interrupted_call_says_so(project, monkeypatch):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(Study, "train", interrupt)
    with pytest.raises(SystemExit, match=r"^interrupted: what had finished is recorded$"):
        studies(["mnist"])


def test_the_ledger_is_written_and_a_claim_printed(project, monkeypatch, capsys):
    monkeypatch.setattr(claims, "ledger", lambda found, numbers=None, make=claims.ledger: make(found, numbers or [52]))
    monkeypatch.setattr(replicas, "recorded", dict)
    studies(["claims"])
    assert list(pd.read_csv(project / "results" / "claims.csv")["number"]) == [52]
    number = claims.claims().query("source == 'S4' and kind == 'exact'").index[0]
    studies(["claims", str(number)])
    assert capsys.readouterr().out.startswith(f"{number} (S4) ")


# ---------------------------------------------------------------- what can be run

RUNNABLE = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
    for part in ("lib", "studies", "course", "report", "benchmarks")
    for path in sorted((ROOT / part).rglob("*.py"))
    if '\nif __name__ == "__main__":' in path.read_text()
]


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")  # runpy, of what is imported already
@pytest.mark.parametrize("name", RUNNABLE)
def test_help_starts_nothing(project, monkeypatch, capsys, name):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(subprocess, "Popen", None)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(name, run_name="__main__")
    out, err = capsys.readouterr()
    assert ended.value.code == 0 and out.startswith("usage: ") and len(out.splitlines()) > 4 and not err
    assert re.search(r"\btakes\b[^.:]*\b(second|minute|hour)", out)
    assert not files(project)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("setting", ["PROFILE", "RETRAIN"])
@pytest.mark.parametrize(
    "name", [name for name in RUNNABLE if name.startswith(("benchmarks.", "course.")) and "sharded" not in name]
)
def test_a_measurement_refuses_a_wrong_setting_in_one_line(project, monkeypatch, capsys, name, setting):
    monkeypatch.setattr(sys, "argv", [name])
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setenv(setting, "fast")
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(name, run_name="__main__")
    assert str(ended.value.code).startswith(f"error: {setting}") and "\n" not in str(ended.value.code)
    assert not capsys.readouterr().out and not files(project)


def test_all_that_can_be_run_is_found():
    assert {"studies", "course.form", "report", "benchmarks.head_costs", "benchmarks.recipes"} <= set(RUNNABLE)


def test_a_mistake_is_one_line_and_no_traceback():
    done = subprocess.run([sys.executable, "-m", "report", "nothing"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["pfd"], "invalid choice: 'pfd'"),
        (["check_name", "", "Ada", "1"], "LASTNAME is empty"),
        (["check_name", "Lovelace"], "the following arguments are required: firstname, id"),
        (["colab", "x"], "REPO 'x'"),
        (["colab", "--quick"], "unrecognized arguments: --quick"),
        (["execute", "nowhere.ipynb"], "nowhere.ipynb is missing"),
    ],
)
def test_the_report_refuses_in_one_line(project, arguments, message):
    assert message in refused(report, *arguments) and not files(project)


@pytest.mark.parametrize("name", [function.__name__ for function in COMMANDS])
def test_help_of_every_command_says_how_long_it_takes(project, monkeypatch, capsys, name):
    monkeypatch.setattr(subprocess, "Popen", None)
    monkeypatch.setattr(environment, "enter", None)
    with pytest.raises(SystemExit) as ended:
        report([name, "--help"])
    out = capsys.readouterr().out
    assert ended.value.code == 0 and f"python -m report {name}" in out
    assert re.search(r"second|minute|hour|until", out) and not files(project)


def make(*arguments):
    command = ["make", "-C", str(ROOT), "--no-print-directory", f"PYTHON={sys.executable}", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_every_target_of_make_is_a_command_of_the_driver():
    listed = make().stdout
    targets = re.findall(r"^  make (\w+)", listed, re.M)
    assert targets == re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
    known = {function.__name__ for function in COMMANDS}
    for target in set(targets) - {"help"}:
        called = make("-n", target, "LASTNAME=Lovelace", "FIRSTNAME=Ada", "ID=1").stdout.split()
        assert called[1:3] == ["-m", "report"] and called[3] in known
        assert called[3] == {"report": "build"}.get(target, target)


def test_make_refuses_an_unknown_profile_and_a_missing_name():
    for arguments, message in ((("report", "PROFILE=foo"), "PROFILE=foo is unknown"), (("submission",), "LASTNAME is")):
        wrong = make(*arguments)
        assert wrong.returncode and not wrong.stdout
        said = [line for line in wrong.stderr.splitlines() if not re.match(r"make(\[\d+\])?: \*\*\*", line)]
        assert len(said) == 1 and said[0].startswith(f"error: {message}")


def test_a_name_in_letters_that_the_output_lacks():
    env = {**os.environ, "PYTHONIOENCODING": "cp1252"}  # as Windows gives it to a file or pipe
    command = [sys.executable, "-m", "report", "check_name", "Łukasiewicz", "Jan", "1"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, encoding="cp1252")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "?ukasiewicz_Jan_1_Project1.zip is the name\n"


@pytest.mark.parametrize("version", ["3.6", "3.8", "3.9"])
def test_an_older_python_is_refused_in_one_line(version):
    if not (old := shutil.which(f"python{version}")) or subprocess.run([old, "-c", ""]).returncode:
        pytest.skip(f"no Python {version} here")
    done = subprocess.run([old, "-m", "report", "status"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: Python 3.10 to 3.14 is needed, this is {version}: ")


def test_a_newer_python_is_refused_in_one_line_before_anything_is_installed():
    code = "import runpy, sys; sys.version_info = (3, 15, 0, 'final', 0); sys.argv = ['report', 'setup']; "
    code += "sys.modules['subprocess'] = None; runpy.run_module('report', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr == "error: Python 3.10 to 3.14 is needed, this is 3.15: call one of these\n"


def test_the_driver_starts_without_any_package():
    code = "import runpy, sys; sys.path[:] = ['', *(p for p in sys.path if 'site-packages' not in p)]; "
    code += "sys.argv = ['report', '--help']; runpy.run_module('report', run_name='__main__')"
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "submission" in done.stdout, done.stderr
