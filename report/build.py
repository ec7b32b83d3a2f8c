"""Execute the notebooks that are out of date, and make the PDF from the executed report."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lib import paths
from report import freshness

SMOKE_JOBS = 2  # notebooks at a time; what the full profile trains or measures has the machine to itself


def sources() -> list[Path]:
    """The notebooks in their order, the report last."""
    return [*sorted((paths.PROJECT / "notebooks").glob("*.ipynb")), paths.PROJECT / "report" / "report.ipynb"]


def executed(source: Path) -> Path:
    """Where the executed notebook lies: in place, in the smoke profile in its folder."""
    return paths.folder(source.parent.name) / source.name


def stale(everything: bool = False) -> dict[Path, list[str]]:
    """The notebooks that are out of date, with the reasons; all of them if that is asked for or with RETRAIN=1."""
    forced = ["RETRAIN=1"] if paths.retrain() else ["asked for"] if everything else []
    reasons = {source: forced or freshness.changed(source, executed(source)) for source in sources()}
    return {source: why for source, why in reasons.items() if why}


def build(everything: bool = False) -> list[str]:
    """Execute what is out of date and write the PDF; returns what was written, and the lines that the runs left.
    Raises ValueError if a notebook fails."""
    start = time.time()
    log = paths.PROJECT / ".build" / ("smoke" if paths.smoke() else "full") / "runs.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    env = {**os.environ, "RUN_LOG": str(log)}
    if paths.smoke():  # with more threads than cores notebooks side by side would wait for each other
        env["OMP_NUM_THREADS"] = "1"
    *notebooks, report = sources()
    old = stale(everything)
    if old:
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
    if report in (old := stale(everything)):
        _execute(report, old[report], env)
        _restamp(sources())
    _pdf()
    return _summary(start, log)


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


def _pdf() -> None:
    from report import pdf

    path, content = paths.folder("report") / "report.pdf", pdf.report()
    if not path.exists() or path.read_bytes() != content:  # the same inputs give the same bytes
        paths.write(path, content)


def _summary(since: float, log: Path) -> list[str]:
    """What was written since then, and the lines that the runs left in log."""
    places = [paths.folder(name) for name in ("notebooks", "results", "figures", "report")]
    files = [path for place in places for path in sorted(place.rglob("*.*")) if path.is_file()]
    files = [path for path in files if path.suffix not in (".lock", ".pyc") and ".ipynb_checkpoints" not in path.parts]
    lines = [f"wrote {path.relative_to(paths.PROJECT)}" for path in files if path.stat().st_mtime >= since]
    runs = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return [*(lines or ["nothing was out of date"]), *dict.fromkeys(runs)]
