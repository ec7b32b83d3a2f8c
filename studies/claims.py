"""The ledger: every claim of S1 to S5 with a test, its figure, the smallest difference in reach, and a verdict.

What is typed stands in results/claims_source.csv: the claims in substance, the tests in words, which metric of which
runs each takes, and what else differs there than what is claimed. Figures and verdicts are computed here, from the
records, and go to results/claims.csv. ``python -m studies claims`` writes it; ``python -m studies claims 7`` trains
what claim 7 lacks (with RETRAIN=1 it trains all of them again, and shows both) and prints it.
"""

import contextlib
import math
import re
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from lib import paths
from studies import (
    controlled,
    evidence,
    geometry,
    margin_maps,
    recommend,
    replicas,
    s1,
    s3,
    statistics,
    tuning,
    verdicts,
)
from studies.evidence import sample, which_stalled
from studies.study import Incomplete, Study

SOURCE = paths.PROJECT / "results" / "claims_source.csv"
OPEN, NOT_RUN = "not testable here", "not run yet"
# a longer verdict begins with one of these and a comma or a colon
VERDICTS = (
    "as claimed", "opposite", "not as claimed", "equivalent", "not decided", "stalled", "confounded", OPEN, NOT_RUN,
)  # fmt: skip
OF_DIFFERENCES = {  # the words of verdicts.decide, for a difference that is positive as claimed
    "higher": "as claimed", "higher by less than the bound": "as claimed, within the bound",
    "lower": "opposite", "lower by less than the bound": "opposite, within the bound",
    "equivalent": "equivalent", "not decided": "not decided", "cannot be told": "not decided",
}  # fmt: skip
RANGES = {"%": (0, 100), "points": (-100, 100), "(correlation)": (-1, 1), "degrees": (-180, 180)}
ALWAYS = "log seconds", "beyond_one"  # metrics that a stalled run has like any other


@dataclass(frozen=True)
class Figure:
    """A number with its 95 % interval, from n pairs, runs or repeats; their setting; the smallest difference that they
    could have shown. reduced: the runs are shorter than published, and were still changing. text: in place of the
    number."""

    verdict: str = OPEN
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    smallest: float = math.nan
    setting: str = ""
    reduced: bool = False
    text: str = ""

    def shown(self, unit: str) -> str:
        """The number with its interval, or the text."""
        if self.text or math.isnan(self.value):
            return self.text
        if not self.low < self.high:  # exact, or a single run
            return f"{0 if abs(self.value) < 1e-9 else self.value:.4g} {unit}".strip()
        digits = digits_of(unit)
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}] {unit}".strip()


def digits_of(unit: str) -> int:
    """Decimals of a figure."""
    return 2 if unit in ("%", "points", "degrees") else 3


# ---------------------------------------------------------------- kinds of tests: (found, row) -> figure


def tested(d, row, setting: str = "", reduced: bool = False, either: bool = False) -> Figure:
    """``verdicts.decide`` for differences, positive as claimed; either: a claimed influence, of any sign."""
    d = np.asarray(d, dtype=float)
    of = verdicts.decide(d, row.bound)
    verdict = OF_DIFFERENCES[of["verdict"]]
    if either:
        verdict = verdict.replace("opposite", "as claimed")
    smallest = statistics.detectable(d.std(ddof=1) if len(d) > 1 else math.nan, len(d))
    interval = np.clip([of["mean"], of["low"], of["high"]], *RANGES.get(row.unit, (-math.inf, math.inf)))
    return Figure(OPEN if reduced else verdict, *interval, len(d), smallest, setting, reduced)


def pairs(found: dict, row) -> tuple[pd.Series, pd.DataFrame, str, bool]:
    """a minus b by seed, in the row's unit; which of the two runs stalled; their setting, ``Figure.reduced``."""
    metrics = row.metric.split(" / ")
    (x, *of_x), (y, *of_y) = (
        sample(found, row.plans, name, metric)
        for name, metric in zip((row.a, row.b), (metrics[0], metrics[-1]), strict=True)
    )
    d = (row.factor * (x - y)).dropna()
    if d.empty:
        raise Incomplete(f"{row.plans} has no pairs of {row.a} and {row.b}")
    bad = which_stalled(found[row.plans][1])
    both = pd.DataFrame({name: [bad[seed, name] for seed in d.index] for name in (row.a, row.b)}, index=d.index)
    if metrics[0] in ALWAYS:
        both[:] = False
    return d, both, *max(of_x, of_y, key=lambda of: of[1])  # one run that still changes is enough


def effect(found: dict, row, either: bool = False) -> Figure:
    """Is the metric of a above that of b?"""
    d, bad, setting, reduced = pairs(found, row)
    out = bad.any(axis=1)
    if out.sum() > verdicts.MOST_STALLED * len(d):
        counts = (f"{short} {bad[name].sum()} of {len(d)}" for short, name in zip(shortened(*bad), bad, strict=True))
        return Figure(f"stalled: {', '.join(counts)}", n=len(d), setting=setting, text=others(d[~out], row.unit))
    d = d[~out]
    if isinstance(d.index[0], tuple):  # of a map: its scales, or its margins, are the repeats, and not its few seeds
        d = d.groupby([at for _, at in d.index]).mean()
    return tested(d, row, setting, reduced, either)


def shortened(*names: str) -> list[str]:
    """The losses of some runs, or what tells the runs apart where they have one loss."""
    losses = [re.split("[:,]", name)[0] for name in names]
    return losses if len(set(losses)) == len(names) else [name.partition(": ")[2] or name for name in names]


def influence(found: dict, row) -> Figure:
    """Does the metric differ between a and b, whichever is above?"""
    return effect(found, row, either=True)


def others(values: pd.Series, unit: str) -> str:
    """The range of the runs that are not stalled, in words."""
    if values.empty:
        return ""
    ends = sorted({f"{value:.{digits_of(unit)}f}" for value in (values.min(), values.max())}, key=float)
    return f"the others {' to '.join(ends)} {unit}".strip()


def value(found: dict, row) -> Figure:
    """Does a published number lie where one more run of the replica would, up to the rounding of its last digit? Open
    where the drift that ``evidence.settled`` allows would change the answer."""
    values, setting, reduced = sample(found, row.plans, row.a, row.metric)
    values *= row.factor
    bad = which_stalled(found[row.plans][1])
    out = pd.Series([bad[seed, row.a] and row.metric not in ALWAYS for seed in values.index], index=values.index)
    if out.sum() > verdicts.MOST_STALLED * len(values):
        verdict = f"stalled: {out.sum()} of {len(values)}"
        return Figure(verdict, n=len(values), setting=setting, text=others(values[~out], row.unit))
    mean, low, high = prediction(values[~out])
    drift = row.factor * evidence.DRIFT * setting.endswith("settled")
    inside = {
        low <= row.published + row.tolerance + d and row.published - row.tolerance - d <= high
        for d in (-drift, 0, drift)
    }
    verdict = "as claimed" if inside == {True} else "not as claimed"
    if reduced or len(inside) > 1 or math.isnan(low):
        verdict = OPEN
    interval = np.clip([mean, low, high], *RANGES.get(row.unit, (-math.inf, math.inf)))
    return Figure(verdict, *interval, len(values[~out]), high - mean, setting, reduced)


def prediction(values, level: float = 0.95) -> tuple[float, float, float]:
    """Mean of runs, and the interval that holds one more run (Student's t); NaN for a single run."""
    mean, _, high = statistics.interval(values, level)
    half = (high - mean) * math.sqrt(len(values) + 1)
    return mean, mean - half, mean + half


def presence(found: dict, row) -> Figure:
    """Is a quantity above 0?"""
    values, setting, reduced = sample(found, row.plans, row.a, row.metric)
    bad = which_stalled(found[row.plans][1])
    kept = [value for seed, value in values.items() if not bad[seed, row.a]]
    if len(values) - len(kept) <= verdicts.MOST_STALLED * len(values):
        return tested(kept, row, setting, reduced)
    return Figure(f"stalled: {len(values) - len(kept)} of {len(values)}", n=len(values), setting=setting)


def harder(found: dict, row) -> Figure:
    """Is a minus b larger in the second plan than in the first? Their seeds have nothing in common (Welch)."""
    easy, hard = (pairs(found, row._replace(plans=plan)) for plan in row.plans.split())
    setting, reduced = hard[2], easy[3] or hard[3]
    bad = [part[1].any(axis=1).sum() for part in (easy, hard)]
    if sum(bad) > verdicts.MOST_STALLED * (len(easy[0]) + len(hard[0])):
        verdict = f"stalled: {bad[0]} of {len(easy[0])} pairs and {bad[1]} of {len(hard[0])}"
        return Figure(verdict, n=len(hard[0]), setting=setting)
    x, y = (part[0][~part[1].any(axis=1)] for part in (hard, easy))
    test = stats.ttest_ind(x, y, equal_var=False)
    mean, error = x.mean() - y.mean(), math.hypot(stats.sem(x), stats.sem(y))
    outer, inner = (error * stats.t.ppf(1 - tail, test.df) for tail in (verdicts.LEVEL / 2, verdicts.LEVEL))
    word = verdicts.word(mean, outer, inner, row.bound) if error > 1e-9 else "cannot be told"  # rounding is no spread
    verdict = OPEN if reduced else OF_DIFFERENCES[word]
    smallest = statistics.detectable(error * math.sqrt(2), 2, df=test.df)
    return Figure(verdict, mean, mean - outer, mean + outer, len(x), smallest, setting, reduced)


def recommended(found: dict, row) -> Figure:
    """Does the recommender's point beat the default on images of a kind that it has not seen?"""
    check = recommend.leave_out(recommend.observations(), "family")
    if not len(check):
        raise Incomplete("no runs of margins are recorded")
    return tested(check["log_odds"], row, "each family left out in turn")


def exact(found: dict, row) -> Figure:
    """Is a calculated number the printed one, up to the rounding of its last digit?"""
    value = geometry.EXACT[row.a]()
    return Figure("as claimed" if abs(value - row.published) <= row.tolerance else "not as claimed", *[value] * 3, n=1)


def noise(found: dict, row) -> Figure:
    """Does the angle find more partners than the distance, over 20 repeats? Where b is given: more so than there?"""
    gains = [
        sum(
            sign * geometry.partners(*geometry.NOISE[name](np.random.default_rng(seed)))
            for name, sign in ((row.a, 1), (row.b, -1))
            if name
        )
        for seed in range(20)
    ]
    return tested(gains, row)


def untested(found: dict, row) -> Figure:
    """No run bears on the claim; its test says why."""
    return Figure()


# ---------------------------------------------------------------- the ledger

KINDS = {f.__name__: f for f in (value, effect, influence, presence, harder, recommended, exact, noise, untested)}


def claims() -> pd.DataFrame:
    """The typed part, one row per claim, by number."""
    numbers = ["published", "tolerance", "bound"]
    table = pd.read_csv(
        SOURCE, index_col="number", dtype=dict.fromkeys(numbers, float), keep_default_na=False,
        na_values=dict.fromkeys(numbers, ""),
    )  # fmt: skip
    table["factor"] = np.where(table["unit"].isin(["%", "points"]), 100, 1)
    return table


def comparisons_of(row) -> list:
    """The comparisons that can answer a claim, the best first: the row once per entry of its cells, which " | "
    separates; confounder "-" stands for nothing that differs beside the claimed."""
    cells = {key: getattr(row, key).split(" | ") for key in ("plans", "a", "b", "metric", "confounder")}
    most = max(map(len, cells.values()))
    full = {key: entries * most if len(entries) == 1 else entries for key, entries in cells.items()}
    ways = (dict(zip(full, entries, strict=True)) for entries in zip(*full.values(), strict=True))
    return [row._replace(**way | {"confounder": way["confounder"].removeprefix("-")}) for way in ways]


def answers(found: dict, row) -> list[tuple]:
    """(comparison, figure) of the first recorded comparison in which nothing but the claimed differs, and of the first
    in which something does; None for either that is not recorded."""
    best = [None, None]
    for way in comparisons_of(row):
        with contextlib.suppress(Incomplete):
            if best[bool(way.confounder)] is None:
                best[bool(way.confounder)] = way, KINDS[row.kind](found, way)
    return best


def size(figure: Figure, unit: str) -> str:
    """A figure that decides nothing: its number, or what stalled."""
    return "; ".join(filter(None, [figure.verdict * ("stalled" in figure.verdict), figure.shown(unit)]))


def entry(found: dict, row) -> dict:
    """A row of the ledger."""
    clean, confounded = answers(found, row)
    used = [answer for answer in (clean, confounded) if answer]
    _, figure = used[0] if used else (None, Figure(NOT_RUN, setting="no runs recorded"))
    verdict = "confounded" if confounded and (not clean or figure.reduced) else figure.verdict
    return {
        "number": row.Index, "source": row.source, "claim": row.claim, "test": row.test,
        "figure": clean[1].shown(row.unit) if clean else "",
        "smallest": "" if math.isnan(figure.smallest) else f"{figure.smallest:.{digits_of(row.unit)}f}",
        "n": figure.n or "", "setting": figure.setting,
        "confounder": confounded[0].confounder if confounded else "",
        "confounded": size(confounded[1], row.unit) if confounded else "",
        "verdict": verdict, "command": f"python -m studies claims {row.Index}",
    }  # fmt: skip


def ledger(recorded: dict, numbers=None) -> pd.DataFrame:
    """Each claim, or those in numbers, with test, figure, verdict and command; recorded: as ``evidence.read``.

    figure: of the comparison that decides. smallest: the difference that its runs would have shown with a power of
    80 %; for a number, how far a run may lie from the mean. confounder, confounded: what else differs in the comparison
    that the source made, and its size there. A claim whose runs are not recorded stays open.
    """
    found = evidence.answered(recorded)
    rows = [entry(found, row) for row in claims().itertuples() if numbers is None or row.Index in numbers]
    return pd.DataFrame(rows).set_index("number")


def counts(table: pd.DataFrame) -> pd.DataFrame:
    """How many claims of each source got which of VERDICTS; a claim of two sources counts for both."""
    short = table.assign(
        source=table["source"].str.split(", "), verdict=table["verdict"].str.split("[,:]").str[0]
    ).explode("source")
    return pd.crosstab(short["source"], short["verdict"]).reindex(columns=VERDICTS, fill_value=0)


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
    """The studies that these claims need: of a claim without any recorded comparison its best one; with RETRAIN=1 of
    each claim those behind its row of the ledger."""
    found, names = evidence.answered(evidence.read()), {}
    for row in claims().loc[list(numbers)].itertuples():
        used = [way for way, _ in filter(None, answers(found, row))]
        for way in (used or comparisons_of(row)[:1]) if paths.retrain() or not used else []:
            names |= dict.fromkeys(plan.partition("/")[0] for plan in way.plans.split())
    return [study for name in names for study in _studies(name)]


def _studies(name: str) -> list[Study]:
    """Those that the ledger calls by this name."""
    if name == "margins":
        return margin_maps.STUDIES
    known = (*replicas.STUDIES, *s1.STUDIES, *s3.STUDIES, *tuning.STUDIES, *controlled.STUDIES, *margin_maps.STUDIES)
    return [study for study in known if study.name == name]


def printed(numbers) -> str:
    """These claims with their figures and verdicts, as text."""
    text = []
    for n, row in ledger(evidence.read(), numbers).iterrows():
        figure = row["figure"] or (row["setting"] if not row["n"] else "") or "no figure"  # or "no runs recorded"
        text += [f"{n} ({row['source']}) {row['claim']}", f"  {row['test']}: {figure}"]
        if row["confounder"]:
            text.append(f"  with a difference in {row['confounder']}: {row['confounded']}")
        if row["smallest"]:
            text.append(f"  in reach of its runs: {row['smallest']}")
        text.append(f"  {row['verdict']}")
    return "\n".join(text)
