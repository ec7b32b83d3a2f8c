"""The ledger once more, from the records, with pandas and scipy alone: nothing of the project is imported.

The command of each row prints it; this file reads the typed part of the row and the records, and has to arrive at the
same figure and the same verdict.
"""

import functools
import json
import math
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import integrate, optimize, stats

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
TYPED = pd.read_csv(RESULTS / "claims_source.csv", index_col="number", keep_default_na=False)
RECOMPUTED = TYPED.index[TYPED["kind"].isin(["value", "effect", "influence", "presence", "harder"])]
SAMPLE = 12
WORDS = {(1, False): "as claimed", (1, True): "as claimed, within the bound", (0, True): "equivalent",
         (-1, False): "opposite", (-1, True): "opposite, within the bound", (0, False): "not decided"}  # fmt: skip
FULL = {"s3_cifar10": 30, "s5": 100}  # published epochs, where the recorded ones may be fewer


# ---------------------------------------------------------------- records


@functools.cache
def read(file):
    """The records of a file, the last one of each configuration."""
    lines = (json.loads(line) for line in (RESULTS / f"{file}.jsonl").read_text().splitlines())
    return list({json.dumps(r["config"], sort_keys=True): r for r in lines if "config" in r}.values())


def pick(file, **wanted):
    """By seed, the records with these fields, of the longest training that has two seeds; absent fields are 0."""
    hits = [r for r in read(file) if all(r["config"].get(key, 0) == value for key, value in wanted.items())]
    lengths = pd.Series([r["config"]["epochs"] for r in hits]).value_counts()
    if not len(lengths):
        return {}
    epochs = max(lengths.index, key=lambda n: (min(lengths[n], 2), n))
    return {r["config"]["seed"]: r for r in hits if r["config"]["epochs"] == epochs}


def s1(data, loss, step):
    """An arm of S1; step: "" as published."""
    arc = loss == "ArcFace"
    wanted = {"data": data, "loss": loss, "frozen_centres": True, "train_size": 0, "margin_warmup": 0.0}
    wanted |= {"m": 0.4 if not arc or step == "same margin, normalised" else 0.5, "unit_norms": not arc}
    wanted["dot_product"] = arc and step != "same margin, normalised"
    if step:
        wanted |= {"network": f"ArcFace {'MNIST' if data == 'mnist' else 'CIFAR-10'}", "lr": 1e-3}
    own = {"mnist": 30.0, "cifar10": 10.0}[data] if arc else 64.0
    wanted["s"] = own if step in ("", "same network and rate") else 16.0
    if not step:
        wanted |= {"lr": 1e-4 if arc and data == "cifar10" else 1e-3}
        wanted["network"] = f"ArcFace {'MNIST' if data == 'mnist' else 'CIFAR-10'}" if arc else "AdaLoss"
    return pick("s1", **wanted)


def s3(data, name):
    """A loss of S3 at what was best on validation images; ", long tail" behind its name."""
    loss, _, tail = name.partition(", ")
    trials = [r for r in read("replicas") if r["config"]["source"] == "S3" and r["config"]["evaluated"] == "val"]
    trials = [r for r in trials if (r["config"]["data"], r["config"]["loss"], r["config"]["epochs"]) == (data, loss, 2)]
    best = max(trials, key=lambda r: r["metrics"]["val_accuracy"])["config"]
    wanted = {"source": "S3", "data": data, "loss": loss, "evaluated": "test", "lr": best["lr"], "m": best["m"]}
    return pick("replicas", **wanted, network="S3", imbalance=100.0 if tail else 1.0)


def s5(name):
    loss, _, flat = name.partition(", ")
    shape = {"embedding_dim": 3 if flat else 64, "m3": 0.0, "m": 0.5 if loss == "ArcFace" else 0.0, "one_cycle": False}
    return {seed: r for seed, r in pick("replicas", source="S5", loss=loss, **shape).items() if flat or not grid(r)}


def grid(r):
    return r["config"]["epochs"] == 20


def in_grid(name, m2, m3):
    return {
        "alone": m3 == 0, "combined": m3 > 0, "0.40 to 0.49": m3 == 0 and m2 <= 0.49, "0.50": (m2, m3) == (0.5, 0),
        "0.50 to 0.59": m3 == 0 and m2 >= 0.5, "without 0.50": m3 == 0 and m2 != 0.5,
        "(0.40, 0.20)": (m2, m3) == (0.4, 0.2), "without (0.40, 0.20)": m3 > 0 and (m2, m3) != (0.4, 0.2),
    }[name]  # fmt: skip


def s5_grid(name, means):
    """Runs of S5's grid by (seed, m2, m3), or their mean by seed."""
    found = {}
    for r in read("replicas"):
        c = r["config"]
        if c["source"] == "S5" and c["epochs"] == 20 and in_grid(name, c["m"], c["m3"]):
            found[c["seed"], c["m"], c["m3"]] = r
    if not means:
        return found
    accuracy = pd.Series({key: r["metrics"]["test_accuracy"] for key, r in found.items()}).groupby(level=0).mean()
    return {seed: {"config": {"epochs": 20}, "metrics": {"test_accuracy": a}} for seed, a in accuracy.items()}


def of_map(data, name):
    """Runs of ArcFace's map at one margin or at one scale, by (seed, the other one)."""
    key, _, size = name.partition(" = ")
    found = {}
    for r in read("margins"):
        c = r["config"]
        at = {"m": 0.0} | dict(c["constants"])
        mapped = (c["data"], c["known"], c["margin_warmup"]) == (data, 7, 1) and c["head"] in ("ArcFace", "NormFace")
        if mapped and at[key] == float(size):
            found[c["seed"], at["s" if key == "m" else "m"]] = r
    return found


def final(study, name):
    """A loss's final runs under the protocol. A control is an ArcFace too, at AdaLoss's scale and rate."""

    def setting(r):
        return dict(r["config"]["constants"]).get("s"), r["config"]["lr"]

    found = read(study)
    seeds = [r["config"]["seed"] for r in found]
    adaloss = {setting(r) for r in found if r["config"]["head"] == "AdaLoss"}
    own = [r for r in found if r["config"]["head"] == name and (name == "AdaLoss" or setting(r) not in adaloss)]
    whole = {seed for seed in seeds if seeds.count(seed) == (9 if seed < 10 else 5)}
    return {r["config"]["seed"]: r for r in own if r["config"]["seed"] in whole}


def runs(plan, name):
    """The records behind a name of a plan, by seed."""
    study, _, part = plan.partition("/")
    data = study.rpartition("_")[2]
    loss, _, step = name.partition(": ")
    if study == "s5_grid":
        return s5_grid(name, part == "means")
    if study == "s5":
        return s5(name)
    if study.startswith("s3_"):
        return s3(data, name)
    if study.startswith("controlled_"):
        return {r["config"]["seed"]: r for r in read(study) if r["config"]["head"] == name}
    if study.startswith("final_"):
        return final(study, name)
    if study.startswith("margins_"):
        return of_map(data, name)
    found = s1(data, loss, step)
    return {seed: found[seed] for seed in sorted(whole(data, arms(study)))}  # of seeds that have all arms


def recorded(plan):
    """Is a plan of S1 recorded: for a single seed, all its arms?"""
    if not plan.startswith(("s1_published", "s1_same_network")):
        return True
    return bool(whole(plan.rpartition("_")[2], arms(plan)))


def arms(plan):
    """The arms of a plan of S1: loss and step."""
    pairs = ["same network and rate", "same scale", "same margin, normalised"]
    return [(loss, step) for loss in ("ArcFace", "AdaLoss") for step in (pairs if "same" in plan else [""])]


def whole(data, parts):
    return set.intersection(*(set(s1(data, *part)) for part in parts))


# ---------------------------------------------------------------- figures and verdicts


def measure(r, metric):
    name, _, epoch = metric.partition(" @")
    m = r["metrics"]
    if epoch:
        return r["history"][name][int(epoch) - 1]
    if name in ("4 and 9", "cat and dog", "animal and vehicle"):
        groups = {
            "4 and 9": ([4], [9]),
            "cat and dog": ([3], [5]),
            "animal and vehicle": ([2, 3, 4, 5, 6, 7], [0, 1, 8, 9]),
        }
        a, b = groups[name]
        table = np.array(m["confusion"])
        return (table[a][:, b].sum() + table[b][:, a].sum()) / (table[a].sum() + table[b].sum())
    if name == "follows difficulty":
        table = np.array(m["confusion"])
        return stats.spearmanr(m["factor_by_class"], 1 - table.diagonal() / table.sum(1)).statistic
    return {
        "training loss": lambda: r["history"]["loss"][-1],
        "log seconds": lambda: math.log(r["seconds"]),
        "log temperature": lambda: math.log(m["temperature"]),
        "train minus test": lambda: m["train_accuracy"] - m["test_accuracy"],
        "within over between": lambda: m["intra_angle"] / m["inter_angle"],
        "beyond the margin": lambda: m["smallest_angle"] - 180 / math.pi * dict(r["config"]["constants"])["m"],
    }.get(name, lambda: m[name])()


def accuracy(r):
    return r["metrics"].get("test_accuracy", r["metrics"].get("val_accuracy"))


def bad(plan, name, way):
    """The seeds of a name whose run stalled: below half of what is usual in its setting."""
    if way["metric"] in ("log seconds", "beyond_one"):
        return set()
    tail = name.partition(", ")[1:]
    if plan.startswith(("s3", "s5", "controlled", "final")) and "grid" not in plan:
        usual = runs(plan, "Softmax" + "".join(tail)).values()
    elif plan.startswith("s1_"):
        alike = [": ".join(filter(None, arm)) for arm in arms(plan) if arm[1].partition(", ")[1:] == tail]
        usual = [r for other in alike for r in runs(plan, other).values()]
    else:
        usual = [r for other in (way["a"], way["b"]) if other for r in runs(plan, other).values()]
    typical = np.median([accuracy(r) for r in usual])
    return {seed for seed, r in runs(plan, name).items() if not accuracy(r) >= typical / 2}


def short(plan, found, metric):
    """Are these runs shorter than published, and still changing?"""
    study, some = plan.partition("/")[0], next(iter(found.values()))
    epochs = some["config"]["epochs"]
    early = " @" in metric and int(metric.partition("@")[2]) < epochs
    if early or epochs >= FULL.get(study, 0) or (study, epochs) == ("s5", 10):
        return False
    curves = np.array([r["history"]["test_accuracy"] for r in found.values()])
    third = curves.shape[1] // 3
    return third < 2 or abs(curves[:, -third:].mean() - curves[:, -2 * third : -third].mean()) >= 0.001


def digits(unit):
    return 2 if unit in ("%", "points", "degrees") else 3


def shown(mean, low, high, unit):
    ends = {"%": (0, 100), "points": (-100, 100), "(correlation)": (-1, 1), "degrees": (-180, 180)}
    mean, low, high = (np.clip(x, *ends.get(unit, (-np.inf, np.inf))) for x in (mean, low, high))
    if not low < high:
        return f"{mean:.4g} {unit}"
    return f"{mean:.{digits(unit)}f} [{low:.{digits(unit)}f}, {high:.{digits(unit)}f}] {unit}"


def rest(values, unit):
    ends = list(dict.fromkeys(f"{x:.{digits(unit)}f}" for x in (min(values), max(values)))) if len(values) else []
    return f"the others {' to '.join(ends)} {unit}" if ends else ""


def judge(mean, error, df, bound):
    different = int(np.sign(mean)) if abs(mean) > error * stats.t.ppf(0.975, df) else 0
    return WORDS[different, bool(bound != "" and abs(mean) + error * stats.t.ppf(0.95, df) < float(bound))]


def reach(error, df):
    """The difference that a t test with this standard error finds in four of five experiments."""
    if not error > 0:
        return ""
    t = stats.t.ppf(0.975, df)

    def lacks(shift):
        def missed(u):  # the estimated deviation is u times the true one
            return stats.norm.cdf(t * u - shift) - stats.norm.cdf(-t * u - shift)

        density = stats.chi(df, scale=df**-0.5).pdf
        return integrate.quad(lambda u: missed(u) * density(u), 0, 6)[0] - 0.2

    return error * optimize.brentq(lacks, 0.5, 50)


def decided(d, way, either=False):
    """Figure, smallest difference and verdict of differences d that are positive as claimed."""
    if len(d) < 3:
        return (
            shown(np.mean(d), np.nan, np.nan, way["unit"]),
            reach(stats.sem(d), 1) if len(d) > 1 else "",
            "not decided",
        )
    half, mean = stats.sem(d) * stats.t.ppf(0.975, len(d) - 1), np.mean(d)
    verdict = judge(mean, stats.sem(d), len(d) - 1, way["bound"])
    verdict = verdict.replace("opposite", "as claimed") if either else verdict
    return shown(mean, mean - half, mean + half, way["unit"]), reach(stats.sem(d), len(d) - 1), verdict


def gaps(way, plan):
    """a minus b by seed; the stalled seeds of each; are they too short?"""
    metrics = way["metric"].split(" / ")
    x, y = runs(plan, way["a"]), runs(plan, way["b"])
    d = pd.Series({s: measure(x[s], metrics[0]) - measure(y[s], metrics[-1]) for s in x if s in y}) * way["factor"]
    stalls = [bad(plan, name, way) & set(d.index) for name in (way["a"], way["b"])]
    return d, stalls, short(plan, x, metrics[0]) or short(plan, y, metrics[-1])


def answer(way, kind):
    """Figure, smallest difference, verdict, and whether the runs are too short."""
    if kind in ("effect", "influence"):
        d, stalls, reduced = gaps(way, way["plans"])
        kept = d[[s not in stalls[0] | stalls[1] for s in d.index]]
        if len(d) - len(kept) > len(d) / 10:
            names = [re.split("[:,]", way[key])[0] for key in "ab"]
            names = names if names[0] != names[1] else [way[key].partition(": ")[2] for key in "ab"]
            text = ", ".join(f"{name} {len(part)} of {len(d)}" for name, part in zip(names, stalls, strict=True))
            return rest(kept, way["unit"]), "", f"stalled: {text}", False
        if way["plans"].startswith("margins"):
            kept = kept.groupby(level=1).mean()
        return *decided(kept.to_numpy(), way, kind == "influence"), reduced
    if kind == "harder":
        (easy, *of_easy), (hard, *of_hard) = (gaps(way, plan) for plan in way["plans"].split())
        counts = [len(set.union(*of[0])) for of in (of_easy, of_hard)]
        if sum(counts) > (len(easy) + len(hard)) / 10:
            return "", "", f"stalled: {counts[0]} of {len(easy)} pairs and {counts[1]} of {len(hard)}", False
        easy, hard = (d.drop(set.union(*of[0])) for d, of in ((easy, of_easy), (hard, of_hard)))
        test = stats.ttest_ind(hard, easy, equal_var=False)
        mean = hard.mean() - easy.mean()
        figure, error = shown(mean, *test.confidence_interval(), way["unit"]), mean / test.statistic
        return figure, reach(error, test.df), judge(mean, error, test.df, way["bound"]), of_easy[1] or of_hard[1]
    found = runs(way["plans"], way["a"])
    values = pd.Series({s: measure(r, way["metric"]) for s, r in found.items()}) * way["factor"]
    stalls, reduced = bad(way["plans"], way["a"], way), short(way["plans"], found, way["metric"])
    kept = values[[s not in stalls for s in values.index]]
    if len(stalls) > len(values) / 10:
        return rest(kept, way["unit"]) * (kind == "value"), "", f"stalled: {len(stalls)} of {len(values)}", False
    if kind == "presence":
        return *decided(kept.to_numpy(), way), reduced
    half = stats.t.ppf(0.975, len(kept) - 1) * kept.std() * math.sqrt(1 + 1 / len(kept))
    settled = next(iter(found.values()))["config"]["epochs"] < FULL.get(way["plans"], 0)
    low, high = float(way["published"]) - float(way["tolerance"]), float(way["published"]) + float(way["tolerance"])
    inside = {
        low - x <= kept.mean() + half and kept.mean() - half <= high + x for x in (-0.1 * settled, 0, 0.1 * settled)
    }
    verdict = (
        "not testable here" if reduced or len(inside) > 1 else "as claimed" if True in inside else "not as claimed"
    )
    return shown(kept.mean(), kept.mean() - half, kept.mean() + half, way["unit"]), half, verdict, reduced


def ways(number):
    """The recorded comparisons of a row, each with what is typed of it."""
    row = TYPED.loc[number]
    cells = {key: row[key].split(" | ") for key in ("plans", "a", "b", "metric", "confounder")}
    factor = 100 if row["unit"] in ("%", "points") else 1
    for i in range(max(map(len, cells.values()))):
        way = {key: entries[min(i, len(entries) - 1)] for key, entries in cells.items()}
        if all(map(recorded, way["plans"].split())):
            yield way | {key: row[key] for key in ("published", "tolerance", "bound", "unit")} | {"factor": factor}


def recompute(number):
    """(figure, size with its confounder, smallest difference, verdict) of a row."""
    row = TYPED.loc[number]
    clean = confounded = None
    for way in ways(number):
        if way["confounder"] in ("", "-"):
            clean = clean or answer(way, row["kind"])
        else:
            confounded = confounded or answer(way, row["kind"])
    size, used = "", clean or confounded
    if confounded:
        size = "; ".join(filter(None, [confounded[2] * ("stalled" in confounded[2]), confounded[0]]))
    verdict = "not testable here" if used[3] and row["kind"] != "value" else used[2]
    if confounded and (not clean or clean[3]):
        verdict = "confounded"
    smallest = used[1] if used[1] == "" or math.isnan(used[1]) else f"{used[1]:.{digits(row['unit'])}f}"
    return clean[0] if clean else "", size, smallest, verdict


# ---------------------------------------------------------------- the tests


def printed(*numbers):
    """What the rows' command prints: by number, figure, size with the confounder, smallest difference, verdict."""
    env = {key: value for key, value in os.environ.items() if key not in ("PROFILE", "RETRAIN")}
    command = [sys.executable, "-m", "studies", "claims", *map(str, numbers)]
    text = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout
    rows = {}
    for part in re.split(r"(?m)^(?=\d+ \()", text)[1:]:
        first, figure, *more, verdict = part.strip().splitlines()
        size, smallest = (
            next((line.partition(": ")[2] for line in more if line.startswith(start)), "")
            for start in ("  with a difference in ", "  in reach of its runs")
        )
        rows[int(first.split(" ")[0])] = figure.rpartition(": ")[2], size, smallest, verdict.strip()
    return rows


def same(mine, theirs):
    """Equal words, and numbers that differ by no more than the last digit that is printed."""
    if re.sub(r"-?\d[\d.e-]*", "#", mine) != re.sub(r"-?\d[\d.e-]*", "#", theirs):
        return False
    numbers = ([float(x) for x in re.findall(r"-?\d+\.?\d*(?:e-\d+)?", text)] for text in (mine, theirs))
    return all(abs(x - y) <= 0.0011 if abs(x) < 1 else abs(x - y) <= 0.011 for x, y in zip(*numbers, strict=True))


def test_a_random_sample_of_rows_comes_out_again():
    known = [number for number in RECOMPUTED if next(ways(number), None)]  # the command would train the others
    for number, (figure, size, smallest, verdict) in printed(*random.sample(known, SAMPLE)).items():
        mine = recompute(number)
        assert same(mine[0] or "no figure", figure), (number, mine, figure)
        assert same(mine[1], size), (number, mine, size)
        assert same(mine[2], smallest), (number, mine, smallest)
        assert mine[3] == verdict, (number, mine, verdict)
