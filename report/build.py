"""Execute the notebooks that are out of date, and make the PDFs of the report and its supplement."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lib import paths
from report import freshness

DOCUMENTS = ("report", "supplement")  # of report/, each a notebook and its PDF
SMOKE_JOBS = 2  # notebooks at a time; what the full profile trains or measures has the machine to itself


def sources() -> list[Path]:
    """The notebooks in their order, the report and its supplement last."""
    documents = [paths.PROJECT / "report" / f"{name}.ipynb" for name in DOCUMENTS]
    return [*sorted((paths.PROJECT / "notebooks").glob("*.ipynb")), *documents]


def check_sources() -> None:
    """Raises ValueError where there are no notebooks, as in an unpacked submission."""
    if not list((paths.PROJECT / "notebooks").glob("*.ipynb")):
        raise ValueError(
            "this folder holds no notebooks, as the zip that is handed in, which has them as scripts: run "
            "`python notebooks/02_arcface_derivation.py`, or build in a clone of the project"
        )


def executed(source: Path) -> Path:
    """Where the executed notebook lies: in place, in the smoke profile in its folder."""
    return paths.folder(source.parent.name) / source.name


def stale(everything: bool = False) -> dict[Path, list[str]]:
    """The notebooks that are out of date, with the reasons; all of them if that is asked for or with RETRAIN=1."""
    forced = ["RETRAIN=1"] if paths.retrain() else ["asked for"] if everything else []
    reasons = {source: forced or freshness.reasons(source, executed(source)) for source in sources()}
    return {source: why for source, why in reasons.items() if why}


def build(everything: bool = False) -> list[str]:
    """Execute what is out of date and write the PDFs; returns what was written, and the lines that the runs left.
    Raises ValueError if a notebook fails."""
    start = time.time()
    log = paths.PROJECT / ".build" / ("smoke" if paths.smoke() else "full") / "runs.log"
    env = {**os.environ, "RUN_LOG": str(log)}
    if paths.smoke():  # with more threads than cores notebooks side by side would wait for each other
        env["OMP_NUM_THREADS"] = "1"
    notebooks, documents = sources()[: -len(DOCUMENTS)], sources()[-len(DOCUMENTS) :]
    old = stale(everything)
    executes = bool(old)
    if executes:  # else a checkout that cannot be written will do
        log.parent.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)
        _call("studies", "data", env=env)
    with ThreadPoolExecutor(SMOKE_JOBS if paths.smoke() else 1) as pool:
        jobs = [pool.submit(_execute, source, old[source], env) for source in notebooks if source in old]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    _restamp(notebooks)
    old = stale(everything)
    for document in documents:
        if document in old:
            _execute(document, old[document], env)
    if any(document in old for document in documents):
        _restamp(sources())
    pdfs()
    return _summary(start, log if executes else None)


def _restamp(notebooks: list[Path]) -> None:
    """What one build records is no reason to execute the notebooks before it again."""
    for source in notebooks:
        freshness.restamp(executed(source))


def _execute(source: Path, reasons: list[str], env: dict[str, str]) -> None:
    others = f" and {len(reasons) - 3} others" if len(reasons) > 3 else ""
    print(f"{source.stem} is out of date: {', '.join(reasons[:3])}{others}", flush=True)
    _call("report", "execute", str(source), env=env)


def _call(module: str, *arguments: str, env: dict[str, str]) -> None:
    """Run a module; it has said itself what went wrong."""
    code = subprocess.run([sys.executable, "-m", module, *arguments], cwd=paths.PROJECT, env=env).returncode
    if code:
        raise ValueError(f"`python -m {module} {' '.join(arguments)}` failed")


def pdfs() -> None:
    """Write the PDFs of the executed documents."""
    from report import pdf

    for name in DOCUMENTS:
        path, content = paths.folder("report") / f"{name}.pdf", pdf.report(name)
        if not path.exists() or path.read_bytes() != content:  # the same inputs give the same bytes
            paths.write(path, content)


def _summary(since: float, log: Path | None) -> list[str]:
    """What was written since then, and the lines that the runs left in log."""
    places = [paths.folder(name) for name in ("notebooks", "results", "figures", "report")]
    files = [path for place in places for path in sorted(place.rglob("*.*")) if path.is_file()]
    files = [path for path in files if path.suffix not in (".lock", ".pyc") and ".ipynb_checkpoints" not in path.parts]
    lines = [f"wrote {path.relative_to(paths.PROJECT)}" for path in files if path.stat().st_mtime >= since]
    runs = log.read_text(encoding="utf-8").splitlines() if log and log.exists() else []
    return [*(lines or ["nothing was out of date"]), *dict.fromkeys(runs)]
