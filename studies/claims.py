"""The ledger: every claim of S1 to S5 with a test, a figure with its interval, and a verdict.

What is typed stands in results/claims_source.csv: the claims in substance, the tests in words, and which
statistic of which runs each takes. Figures and verdicts are computed here, from the records, and go to
results/claims.csv. ``python -m studies claims`` writes it; ``python -m studies claims 7`` trains what claim 7
lacks (with RETRAIN=1 it trains all of them again, and shows both) and prints it.
"""

import functools
import json
import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch.nn import functional as F

from lib import data, heads, paths
from studies import ablation, margin_maps, recommend, records, replicas, runs, statistics, tuning
from studies.study import Incomplete, Study

SOURCE = paths.PROJECT / "results" / "claims_source.csv"
OPEN = "not testable here"
DRIFT = 0.001  # of the test accuracy; see ``settled``
VERDICTS = (
    "reproduced", "reproduced but for another reason", "within noise", "not reproduced", "reversed", OPEN,
)  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """A number with its interval, from n runs or repeats; their setting. reduced: the runs are shorter than
    published, and were still changing."""

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    setting: str = ""
    reduced: bool = False

    def text(self, unit: str) -> str:
        if math.isnan(self.value):
            return ""
        if not self.low < self.high:  # exact, or a single run
            return f"{self.value:.4g} {unit}".strip()
        digits = 2 if unit in ("%", "points", "degrees") else 3
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}] {unit}".strip()


# ---------------------------------------------------------------- from figures to verdicts: all rules
# Runs that are too short decide nothing about the end of a training, with one exception in value_verdict.


def value_verdict(figure: Figure, published: float, tolerance: float) -> str:
    """A published number is reproduced where it lies, up to the rounding of its last digit, in the interval
    that holds one more run with 95 %. Too short runs can only refute what they exceed."""
    if math.isnan(figure.low):
        return OPEN
    if published + tolerance < figure.low:
        return "not reproduced"
    if figure.reduced:
        return OPEN
    return "reproduced" if published - tolerance <= figure.high else "not reproduced"


def effect_verdict(fair: Figure, own: Figure | None = None) -> str:
    """A claimed difference, positive as claimed. fair: measured without the defect in question; own: as the
    source measured it. 95 % intervals of the mean over seeds."""
    if math.isnan(fair.low) or fair.reduced:
        return OPEN
    if fair.low > 0:
        return "reproduced"
    if fair.high < 0:
        return "reversed"
    return "reproduced but for another reason" if own and own.low > 0 else "within noise"


def influence_verdict(figure: Figure) -> str:
    """A claimed influence, of either sign."""
    if math.isnan(figure.low) or figure.reduced:
        return OPEN
    return "reproduced" if figure.low > 0 or figure.high < 0 else "within noise"


def property_verdict(figure: Figure) -> str:
    """Something claimed to be there: reproduced if the interval lies above 0."""
    if math.isnan(figure.low) or figure.reduced:
        return OPEN
    return "reproduced" if figure.low > 0 else "not reproduced"


# ---------------------------------------------------------------- figures from records


def follows_difficulty(record: dict) -> float:
    """Rank correlation, over the classes, of the mean quality factor with the test error."""
    confusion = np.array(record["metrics"]["confusion"])
    error = 1 - confusion.diagonal() / confusion.sum(1).clip(1)
    return stats.spearmanr(record["metrics"]["factor_by_class"], error).statistic


METRICS = {  # beyond those of the record
    "training loss": lambda r: r["history"]["loss"][-1],
    "log seconds": lambda r: math.log(r["seconds"]),
    "train minus test": lambda r: r["metrics"]["train_accuracy"] - r["metrics"]["test_accuracy"],
    "within over between": lambda r: r["metrics"]["intra_angle"] / r["metrics"]["inter_angle"],
    "follows difficulty": follows_difficulty,
}


def metric_of(record: dict, metric: str) -> float:
    """A metric of a record, one of METRICS, or "test_accuracy @5" for its value after five epochs."""
    name, _, epoch = metric.partition(" @")
    if epoch:
        return record["history"][name][: int(epoch)][-1]
    return METRICS[name](record) if name in METRICS else record["metrics"][name]


def sample(found: dict, plans: str, name: str, metric: str) -> tuple[pd.Series, str, bool]:
    """A metric of the run of that name in a plan, by seed; its setting in words; ``Figure.reduced``.

    found: ``replicas.complete`` by plan. plans: in order of preference, separated by blanks. Raises
    Incomplete if none is found.
    """
    epochs, by_seed = next((found[plan] for plan in plans.split() if plan in found), (0, {}))
    if not by_seed:
        raise Incomplete(f"no runs of {plans} are recorded")
    values = pd.Series({seed: metric_of(runs[name], metric) for seed, runs in by_seed.items()})
    records = [runs[name] for runs in by_seed.values()]
    own, read = records[0]["config"]["epochs"], int(metric.partition(" @")[2] or epochs)
    if own != epochs or read < epochs:  # of a length that does not depend on the plan's, or read before the end
        return values, f"{min(own, read)} epoch{'s' * (min(own, read) > 1)}", False
    return values, *length(epochs, replicas.PLANS[plans.split()[0]][2][0], records)


def length(epochs: int, full: int, records: list[dict]) -> tuple[str, bool]:
    """How long the runs of these records are, in words, and ``Figure.reduced``."""
    if epochs >= full:
        return f"{epochs} epochs", False
    return (
        (f"{epochs} epochs, not {full}: settled", False) if settled(records) else (f"{epochs} epochs, not {full}", True)
    )


def settled(records: list[dict]) -> bool:
    """Did test accuracy change by less than DRIFT from the middle third of the epochs to the last?"""
    curves = np.array([record["history"]["test_accuracy"] for record in records])  # (seeds, epochs)
    third = curves.shape[1] // 3
    return third > 1 and abs(curves[:, -third:].mean() - curves[:, -2 * third : -third].mean()) < DRIFT


def prediction(values, level: float = 0.95) -> tuple[float, float, float]:
    """Mean of runs, and the interval that holds one more run (Student's t); NaN for a single run."""
    mean, _, high = statistics.interval(values, level)
    half = (high - mean) * math.sqrt(len(values) + 1)
    return mean, mean - half, mean + half


def difference(found: dict, row, a: str, b: str, metric_a: str, metric_b: str) -> Figure:
    """Mean and interval of one run's metric minus another's, seed by seed."""
    (x, *of_x), (y, *of_y) = (sample(found, row.plans, a, metric_a), sample(found, row.plans, b, metric_b))
    gap = row.factor * (x - y)
    setting, reduced = max(of_x, of_y, key=lambda of: of[1])  # one run that still changes is enough
    return Figure(*statistics.interval(gap), len(gap), setting, reduced)


# ---------------------------------------------------------------- kinds of tests: (found, row) -> figure, verdict


def value(found, row):
    """Does a published number lie where one more run of the replica would? Open where the drift that ``settled``
    allows would change the answer."""
    values, setting, reduced = sample(found, row.plans, row.a, row.metric)
    figure = Figure(*prediction(row.factor * values), len(values), setting, reduced)
    drift = row.factor * DRIFT * setting.endswith("settled")
    verdicts = {value_verdict(figure, row.published, row.tolerance + more) for more in (-drift, 0, drift)}
    return figure, verdicts.pop() if len(verdicts) == 1 else OPEN


def effect(found, row):
    """Is the metric of a above that of b? own, where given: the two metrics that the source compared, and
    so of its runs as published."""
    fair = difference(found, row, row.a, row.b, row.metric, row.metric)
    if not row.own:
        return fair, effect_verdict(fair)
    a, b = (f"{name.split(':')[0]}: as published" for name in (row.a, row.b))
    return fair, effect_verdict(fair, difference(found, row, a, b, *row.own.split(" / ")))


def influence(found, row):
    fair = difference(found, row, row.a, row.b, row.metric, row.metric)
    return fair, influence_verdict(fair)


def presence(found, row):
    """Is a quantity above 0?"""
    values, setting, reduced = sample(found, row.plans, row.a, row.metric)
    figure = Figure(*statistics.interval(values), len(values), setting, reduced)
    return figure, property_verdict(figure)


def harder(found, row):
    """Is the gap between the arms larger on CIFAR-10 than on MNIST?"""
    readings = []
    for metric in ("test_accuracy", "leaked_accuracy"):
        gaps = {}
        for name in ("mnist", "cifar10"):
            plans = f"s1_{name} waterfall_{name}"
            adaloss, setting, reduced = sample(found, plans, "AdaLoss: as published", "test_accuracy")
            gaps[name] = adaloss - sample(found, plans, "ArcFace: as published", metric)[0]
        extra = 100 * (gaps["cifar10"] - gaps["mnist"]).dropna()
        readings.append(Figure(*statistics.interval(extra), len(extra), f"CIFAR-10: {setting}", reduced))
    return readings[0], effect_verdict(*readings)


def s5_grid(found: dict) -> tuple[pd.DataFrame, str, bool]:
    """Test accuracy (%) of S5's grid, one row per (m2, m3) and one column per seed; its setting."""
    if "s5_grid" not in found:
        raise Incomplete("no runs of s5_grid are recorded")
    epochs, by_seed = found["s5_grid"]
    records = [record for runs in by_seed.values() for record in runs.values()]
    table = {s: {pair: 100 * r["metrics"]["test_accuracy"] for pair, r in runs.items()} for s, runs in by_seed.items()}
    return pd.DataFrame(table), *length(epochs, replicas.PLANS["s5_grid"][2][0], records)


def outlier(found, row):
    """Does a value of S5's table lie where one more run would, of any m (a: alone) or pair (a: combined)?"""
    table, setting, reduced = s5_grid(found)
    runs = table[(table.index.get_level_values(1) > 0) == (row.a == "combined")].to_numpy().ravel()
    figure = Figure(*prediction(runs), len(runs), setting, reduced)
    return figure, value_verdict(figure, row.published, row.tolerance)


def best(found, row):
    """Is the mean accuracy of some margins (a) above that of others (b), seed by seed?"""
    table, setting, reduced = s5_grid(found)
    m2, m3 = (table.index.get_level_values(i) for i in (0, 1))
    rows = {"alone": m3 == 0, "combined": m3 > 0, "0.50": (m2 == 0.5) & (m3 == 0)}
    rows["(0.40, 0.20)"] = (m2 == 0.4) & (m3 == 0.2)
    gap = table[rows[row.a]].mean() - table[rows[row.b] & ~rows[row.a]].mean()
    figure = Figure(*statistics.interval(gap), len(gap), setting, reduced)
    return figure, effect_verdict(figure)


def margins(found, row):
    """Variance between the twenty m, in units of that between seeds: analysis of variance, seeds as blocks. Its
    estimate can fall below 0, what it estimates cannot: such an interval reverses nothing."""
    table, setting, reduced = s5_grid(found)
    table = table[table.index.get_level_values(1) == 0]
    (a, n), df = table.shape, (len(table) - 1) * (table.shape[1] - 1)
    if not df:
        return Figure(n=a, setting=setting), OPEN
    table = table - table.mean()
    within = table.sub(table.mean(axis=1), axis=0).pow(2).to_numpy().sum() / df
    ratio = n * table.mean(axis=1).var() / within
    low, high = ((ratio / stats.f.ppf(q, a - 1, df) - 1) / n for q in (0.975, 0.025))
    figure = Figure((ratio - 1) / n, low, high, a * n, setting, reduced)
    verdict = effect_verdict(figure)
    return figure, "within noise" if verdict == "reversed" else verdict


def controlled(found, row):
    """Is the metric of a above that of b in the controlled study or its ablation?"""
    try:
        frame = CONTROLLED[row.plans]()
    except ValueError as error:
        raise Incomplete(str(error)) from None
    wide = row.factor * frame.pivot(index="seed", columns="head", values=row.metric)
    gap = wide[row.a] - wide[row.b]
    figure = Figure(*statistics.interval(gap), len(gap), f"{frame['epochs'].iloc[0]} epochs")
    return figure, effect_verdict(figure)


def recommended(found, row):
    """Does the recommender's point beat the default on images of a kind that it has not seen?"""
    check = recommend.leave_out(recommend.observations(), "family")
    if not len(check):
        raise Incomplete("no runs of margins are recorded")
    figure = Figure(*statistics.interval(check["log_odds"]), len(check), "each family left out in turn")
    return figure, effect_verdict(figure)


def untested(found, row):
    return Figure(), OPEN


# ---- S4: geometry and deliverables


def exact(found, row):
    figure = Figure(*[EXACT[row.a]()] * 3, n=1)
    return figure, value_verdict(figure, row.published, row.tolerance)


def noise(found, row):
    """Does the angle find more partners than the distance, over 20 repeats?"""
    gains = [partners(*NOISE[row.a](np.random.default_rng(seed))) for seed in range(20)]
    figure = Figure(*statistics.interval(gains), len(gains))
    return figure, effect_verdict(figure)


def delivered(found, row):
    figure = Figure(*[float(DELIVERED[row.a]())] * 3, n=1)
    return figure, property_verdict(figure)


def partners(x: np.ndarray, disturbed: np.ndarray) -> float:
    """Percentage points by which the angle finds more partners than the Euclidean distance: rows of
    disturbed (N, d) whose nearest row of x (N, d) is their own."""
    dots, own = disturbed @ x.T, np.arange(len(x))
    nearest = ((x**2).sum(1) - 2 * dots).argmin(1)
    aligned = (dots / np.linalg.norm(x, axis=1)).argmax(1)
    return 100 * ((aligned == own).mean() - (nearest == own).mean())


def quarter(rng, x: np.ndarray) -> np.ndarray:
    """A random quarter of the coordinates of each row of x (N, d), as a mask."""
    return rng.random(x.shape).argsort(1) < x.shape[1] / 4


@functools.cache
def digits() -> np.ndarray:
    return data.load("digits").train.images.flatten(1).numpy() / 255


def occluded_digits(rng, black: bool = False) -> tuple[np.ndarray, np.ndarray]:
    x = digits()
    return x, np.where(quarter(rng, x), 0 if black else rng.random(x.shape), x)


def high_dimension(rng, d: int = 256, N: int = 200) -> tuple[np.ndarray, np.ndarray]:
    x = rng.standard_normal((N, d))
    return x, x + 0.7 * math.sqrt(d) * rng.standard_normal((N, d)) * quarter(rng, x)


def degrees(a, b) -> float:
    return math.degrees(math.acos(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b))))


def layer() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """S4's layer: 64 embeddings e (64, 100) and weights W (10, 100) of unit length, labels y (64,)."""
    generator = torch.Generator().manual_seed(0)
    e, W = (F.normalize(torch.randn(n, 100, generator=generator, dtype=torch.float64)) for n in (64, 10))
    return e, W, torch.randint(10, (64,), generator=generator)


def cosine_error() -> float:
    e, W, _ = (t.numpy() for t in layer())
    return max(abs(float(a @ b) - math.cos(math.radians(degrees(a, b)))) for a in e for b in W)


def equation_error(name: str, **constants: float) -> float:
    """Largest deviation of a head's loss from S4's L2 (no m) or L3, sample by sample."""
    e, W, y = layer()
    head = heads.make(name, 10, 100, **constants).double()
    head.W.data = W
    cos = e @ W.T
    own = F.one_hot(y, 10).bool()
    target = (head.s * (cos[own].acos() + constants.get("m", 0)).cos()).exp()
    printed = -(target / (target + (head.s * cos).exp().masked_fill(own, 0).sum(1))).log()
    return (F.cross_entropy(head(e, y), y, reduction="none") - printed).abs().max().item()


def main_records(name: str) -> dict:
    return records.read(paths.PROJECT / "results" / f"{name}.jsonl", runs.Config)


def report_sections() -> set[str]:
    report = json.loads((paths.PROJECT / "report" / "report.ipynb").read_text(encoding="utf-8"))
    return {line.split(" {")[0] for cell in report["cells"] for line in "".join(cell["source"]).splitlines()}


P, Q = np.array([5, 2]), np.array([7, 4])
EXACT = {
    "distance": lambda: float(np.linalg.norm(P - Q)),
    "angle": lambda: degrees(P, Q),
    "distance, grown": lambda: float(np.linalg.norm(P - 1.5 * Q)),
    "angle, grown": lambda: abs(degrees(P, 1.5 * Q) - degrees(P, Q)),
    "cosines": cosine_error,
    "L2": functools.partial(equation_error, "NormFace"),
    "L3": functools.partial(equation_error, "ArcFace", m=0.5),
}
NOISE = {
    "digits": occluded_digits,
    "digits, black": functools.partial(occluded_digits, black=True),
    "high dimension": high_dimension,
}
DELIVERED = {
    "explanation": lambda: (paths.PROJECT / "notebooks" / "02_arcface_derivation.ipynb").exists(),
    "program": lambda: all(any(config.head == "ArcFace" for config in main_records(name)) for name in runs.MAIN),
    "zip": lambda: "Project1" in (paths.PROJECT / "report" / "submission.py").read_text(encoding="utf-8"),
    "figures": lambda: {path.suffix for path in (paths.PROJECT / "figures").iterdir()} == {".png"},
    "report": lambda: (
        (paths.PROJECT / "report" / "report.pdf").exists() and {"## Results", "## Conclusion"} <= report_sections()
    ),
}

CONTROLLED = {
    "controlled_mnist": functools.partial(tuning.finished, "mnist"),
    "controlled_cifar10": functools.partial(tuning.finished, "cifar10"),
    "ablation_cifar10": ablation.finished,
}

# ---------------------------------------------------------------- the ledger

KINDS = {
    f.__name__: f
    for f in (
        value, effect, influence, presence, harder, outlier, best, margins, controlled, recommended, exact, noise,
        delivered, untested,
    )
}  # fmt: skip


def claims() -> pd.DataFrame:
    """The typed part, one row per claim, by number."""
    table = pd.read_csv(
        SOURCE,
        index_col="number",
        dtype={"published": float, "tolerance": float},
        keep_default_na=False,
        na_values={"published": "", "tolerance": ""},
    )
    table["factor"] = np.where(table["unit"].isin(["%", "points"]), 100, 1)
    return table


def ledger(recorded: dict, numbers=None) -> pd.DataFrame:
    """Source, claim, test, figure, n, setting, verdict and command of each claim, or of those in numbers.

    A claim whose runs are not recorded stays open.
    """
    rows, found = [], replicas.answered(recorded)
    for row in claims().itertuples():
        if numbers is not None and row.Index not in numbers:
            continue
        try:
            figure, verdict = KINDS[row.kind](found, row)
        except Incomplete:
            figure, verdict = Figure(setting="no runs recorded"), OPEN
        rows.append(
            {
                "number": row.Index, "source": row.source, "claim": row.claim, "test": row.test,
                "figure": figure.text(row.unit), "n": figure.n or "", "setting": figure.setting, "verdict": verdict,
                "command": f"python -m studies claims {row.Index}",
            }
        )  # fmt: skip
    return pd.DataFrame(rows).set_index("number")


def write_ledger(table: pd.DataFrame) -> None:
    """Write results/claims.csv, whole or not at all. Raises OSError."""
    paths.write(paths.folder("results") / "claims.csv", table.to_csv())


def numbers(texts) -> list[int]:
    """The claims of these numbers. Raises ValueError for what is no number of a claim."""
    known = claims().index
    if unknown := [text for text in texts if not (text.isdecimal() and int(text) in known)]:
        raise ValueError(f"there is no claim {unknown[0]}: choose from 1 to {len(known)}")
    return [int(text) for text in texts]


def needed(numbers) -> list[Study]:
    """The studies of which no seed is complete and that these claims rest on; with RETRAIN=1 all of them."""
    table = claims()
    plans = dict.fromkeys(" ".join(table.loc[list(numbers), "plans"]).split())
    # where a plan of S1's arms is named beside its waterfall, the first stands in for the second
    names = [
        name for name in plans if name.startswith("s1") or name.replace("waterfall", "s1") not in {*plans} - {name}
    ]
    return [study for name in names for study in _studies(name) if paths.retrain() or not _recorded(name, study)]


def _studies(name: str) -> list[Study]:
    """Those that the ledger calls by this name."""
    if name == "margins":
        return margin_maps.STUDIES
    return [study for study in (*replicas.STUDIES, *tuning.STUDIES, *ablation.STUDIES) if study.name == name]


def _recorded(name: str, study: Study) -> bool:
    try:
        if name in replicas.PLANS:
            replicas.complete(name, study.read())
        elif name in CONTROLLED:
            CONTROLLED[name]()
        else:
            return len(study.read()) > 0
        return True
    except ValueError:  # nothing is recorded
        return False


def printed(numbers) -> str:
    """These claims with their figures and verdicts, as text."""
    rows = ledger(replicas.read(), numbers).iterrows()
    return "\n".join(
        f"{n} ({row['source']}) {row['claim']}\n  {row['test']}: {row['figure']}\n  {row['verdict']}" for n, row in rows
    )
