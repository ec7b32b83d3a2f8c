"""A loss, margins and a scale for a new data set, learned from the runs recorded on others.

S5 wished for a repository of (data set, margins, accuracy) from which a regression recommends margins.
This is one: a Gaussian process (Rasmussen and Williams 2006, sections 2.2 and 5.4.1). Its inputs are a point
(m2, m3, s) as in ``margin_maps`` and three numbers that describe a data set. It has seen four kinds of images, so
notebook 10 checks it on data sets that it does not know: read that before you follow it.
"""

import dataclasses
import functools
import math
import warnings

import numpy as np
import pandas as pd
from scipy.stats import norm
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.linear_model import RidgeClassifier
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from lib import data as datasets
from lib import paths
from studies import margin_maps, omniglot, records

POINT = ["m2", "m3", "s"]
DESCRIPTORS = ["log_classes", "log_images", "probe_error"]
DEFAULT = margin_maps.point("ArcFace")
# the files it learns from, and the kind of their runs; somebody's own study changes nothing
SOURCES = dict.fromkeys(
    (
        "ablation_cifar10", "cifar10", "controlled_cifar10", "controlled_mnist", "margins", "mnist", "recipe_cifar10",
        "recipe_cifar10_94", "recipe_mnist", "tuning_cifar10", "tuning_mnist",
    ),
    margin_maps.Run,
) | {"omniglot_map": omniglot.Run}  # fmt: skip
FAMILIES = margin_maps.NAMES | {"omniglot": "Omniglot"}
WORST = -1.0  # log-odds; how far below the default a point lies does not matter from there on
DECIMALS = 3  # of an expected gain; less is none, as far from all that it knows


def recommend(data: datasets.Data, observed: pd.DataFrame) -> pd.DataFrame:
    """For each loss the point that promises most on data, best first; observed: ``observations()``.

    Columns: constants (of the head), gain (expected log-odds of a right answer on validation images, less those
    of the default, ArcFace at s = 16, m = 0.3), deviation (of that prediction, with the noise of a run on both
    sides), better (the probability that a run with it beats one with the default). Only recorded points are
    candidates; where no gain is expected, the default is first. Raises ValueError for observations of fewer than
    two data sets.
    """
    default = pd.DataFrame([DEFAULT], columns=POINT)
    candidates = pd.concat([default, observed[POINT]], ignore_index=True).drop_duplicates()
    table = expected_gain(learn(observed), candidates, describe(data))
    fields = [margin_maps.head_of(*p) for p in table[POINT].to_numpy()]
    table["loss"] = [field["head"] for field in fields]
    table["constants"] = [", ".join(f"{k} = {v:g}" for k, v in field["constants"].items()) for field in fields]
    # stable: of points with equal gains, as where it knows nothing, the default is first
    table = table.sort_values("gain", ascending=False, kind="stable", key=lambda gain: gain.round(DECIMALS))
    table = table.drop_duplicates("loss")
    return table.set_index("loss")[["constants", "gain", "deviation", "better"]]


def describe(data: datasets.Data) -> dict[str, float]:
    """log_classes, log_images (training images per class) and probe_error: the validation error of a linear
    probe (ridge regression to one-hot labels) on raw pixels, of at most 2,000 images on each side."""
    train, val = data.train[:2000], data.val[:2000]
    pixels = [split.images.flatten(1).float().cpu().numpy() / 255 for split in (train, val)]
    probe = RidgeClassifier(alpha=10).fit(pixels[0], train.labels.cpu())
    C = len(data.classes)
    error = 1 - probe.score(pixels[1], val.labels.cpu())
    return dict(zip(DESCRIPTORS, (math.log(C), math.log(len(data.train) / C), error), strict=True))


def observations() -> pd.DataFrame:
    """Every point of the records in ``SOURCES``: POINT, DESCRIPTORS, family, set (its name), n (runs), gain (log-odds
    of a right answer less those of the four default losses with the same seed, mean over runs), variance (of gain,
    from the number of validation images) and accuracy (the default's mean, plus the difference to it seed by seed).

    A set is a number of classes and images with one way of training. Sets and seeds without the four defaults
    are left out, as are runs of other losses.
    """
    rows = []
    for name, kind in SOURCES.items():
        for run, record in records.read(paths.folder("results") / f"{name}.jsonl", kind).items():
            p = margin_maps.point(run.head, run.constants)
            if p is not None and run.data in FAMILIES:
                C, size, accuracy = _measured(run, record["metrics"])
                rows.append((_setting(run), run.seed, *p, C, accuracy, size))
    frame = pd.DataFrame(rows, columns=["setting", "seed", *POINT, "classes", "accuracy", "size"])
    sets = [cells for _, group in frame.groupby("setting", sort=False) if (cells := _relative(group)) is not None]
    names = [cells["set"].iloc[0] for cells in sets]
    for number, cells in enumerate(sets):
        if earlier := names[:number].count(names[number]):
            cells["set"] += f" ({earlier + 1})"  # the same images, trained in another way
    return pd.concat(sets or [frame.iloc[:0].assign(set=[], family=[])], ignore_index=True)


def _setting(run: margin_maps.Run | omniglot.Run) -> margin_maps.Run | omniglot.Run:
    """What runs of one set have in common."""
    common = {"head": "NormFace", "constants": (), "seed": 0}
    return dataclasses.replace(run, **common, **({"split": 0} if isinstance(run, margin_maps.Run) else {}))


def _measured(run: margin_maps.Run | omniglot.Run, metrics: dict) -> tuple[int, int, float]:
    """The number of a run's classes and of its validation images, and its accuracy on these."""
    if isinstance(run, omniglot.Run):
        C, size = _characters(_setting(run))
    else:
        C, size = run.known or 10, metrics.get("val_size", datasets.VAL_SIZE)
    return C, size, metrics.get("val_accuracy", 1 / C)  # without one it diverged


@functools.lru_cache
def _characters(setting: omniglot.Run) -> tuple[int, int]:
    data = omniglot.prepare(setting)[0]
    return len(data.classes), len(data.val)


def _relative(group: pd.DataFrame) -> pd.DataFrame | None:
    """The observations of one set, None without its defaults."""
    right = (group["accuracy"] * group["size"] + 0.5) / (group["size"] + 1)  # finite also without an error
    runs = group.assign(odds=np.log(right / (1 - right)), variance=1 / (group["size"] * right * (1 - right)))
    runs["point"] = list(zip(*(runs[name] for name in POINT), strict=True))
    defaults = runs[runs["point"].isin(margin_maps.DEFAULTS)]
    defaults = defaults.pivot_table(
        ["odds", "accuracy"], index="seed", columns="point"
    ).dropna()  # two files may hold a run
    runs = runs[runs["seed"].isin(defaults.index)]
    if runs.empty or defaults["odds"].shape[1] < len(margin_maps.DEFAULTS):
        return None
    usual = defaults["accuracy", DEFAULT]
    runs["gain"] = (runs["odds"] - runs["seed"].map(defaults["odds"].mean(axis=1))).clip(lower=WORST)
    runs["accuracy"] += usual.mean() - runs["seed"].map(usual)
    cells = runs.groupby(POINT).agg(
        n=("seed", "size"), accuracy=("accuracy", "mean"), gain=("gain", "mean"), variance=("variance", "mean")
    )
    cells["variance"] /= cells["n"]
    setting = group["setting"].iloc[0]
    family = FAMILIES[setting.data]
    name = f"{family}, {group['classes'].iloc[0]} classes, {setting.train_size or 'all'} images"
    return cells.reset_index().assign(family=family, set=name, **_described(setting))


@functools.lru_cache
def _described(setting: margin_maps.Run | omniglot.Run) -> dict[str, float]:
    select = omniglot.prepare if isinstance(setting, omniglot.Run) else margin_maps.select
    return describe(select(setting)[0])


# ---------------------------------------------------------------- the regression


def design(points: pd.DataFrame) -> np.ndarray:
    """(N, 6): m2, m3, log2 s and the descriptors."""
    return np.column_stack([points[["m2", "m3"]], np.log2(points["s"]), points[DESCRIPTORS]]).astype(float)


def learn(observed: pd.DataFrame) -> tuple[StandardScaler, GaussianProcessRegressor]:
    """The scaler of the features and the Gaussian process of the gain; one length per feature.

    What counting errors adds to the noise is known and given; the rest is fitted.
    """
    if observed["set"].nunique() < 2:
        raise ValueError(
            "too few records to learn from: `python -m studies small_digits small_mnist small_cifar10` trains some"
        )
    scaler = StandardScaler()
    X = scaler.fit_transform(design(observed))
    kernel = ConstantKernel(0.1) * RBF(np.ones(X.shape[1]), (0.3, 100)) + WhiteKernel(0.01, (1e-4, 1))
    model = GaussianProcessRegressor(kernel, alpha=observed["variance"].to_numpy(), random_state=0)
    # threads that wait for each other take seven times as long for matrices as small as these
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a length at its bound: a feature that does not matter
        return scaler, model.fit(X, observed["gain"])


def expected_gain(model, candidates: pd.DataFrame, descriptors: dict[str, float]) -> pd.DataFrame:
    """The candidates' POINT with gain, deviation and better, as in ``recommend``."""
    scaler, process = model
    points = pd.concat([candidates[POINT], pd.DataFrame([DEFAULT], columns=POINT)], ignore_index=True)
    mean, covariance = process.predict(scaler.transform(design(points.assign(**descriptors))), return_cov=True)
    gain = mean[:-1] - mean[-1]
    variance = covariance.diagonal()[:-1] + covariance[-1, -1] - 2 * covariance[:-1, -1]
    deviation = np.sqrt(variance.clip(1e-12))
    return points[:-1].assign(gain=gain, deviation=deviation, better=norm.cdf(gain / deviation))


def leave_out(observed: pd.DataFrame, column: str) -> pd.DataFrame:
    """What would have been recommended for each set without it (column "set") or its family ("family").

    One row per set with more than the references recorded: the chosen point, its prediction, and the measured
    accuracy of it, of the default, of the best point and of usual, the point with the best mean gain on the
    other sets (a recommendation without regression); log_odds: measured, recommended less default.
    """
    rows, models = [], {}
    for name, own in observed.groupby("set", sort=False):
        left_out = own[column].iloc[0]
        others = observed[observed[column] != left_out]
        if len(own) <= len(margin_maps.REFERENCES) or others["set"].nunique() < 2:
            continue
        if left_out not in models:
            models[left_out] = learn(others)
        own = own.set_index(POINT, drop=False)
        table = expected_gain(models[left_out], own, own[DESCRIPTORS].iloc[0]).set_index(POINT, drop=False)
        gain = table["gain"].round(DECIMALS)
        chosen = gain.idxmax() if gain.max() > 0 else DEFAULT
        known = others.groupby(POINT)["gain"].agg(["mean", "size"]).reindex(own.index)
        usual = known["mean"].where(known["size"] > known["size"].max() / 2).idxmax()
        rows.append(
            {
                "family": own["family"].iloc[0], "set": name, "points": len(own), "chosen": chosen,
                **table.loc[[chosen], ["gain", "deviation", "better"]].iloc[0],
                "recommended": own.at[chosen, "accuracy"], "default": own.at[DEFAULT, "accuracy"],
                "usual": own.at[usual, "accuracy"], "best": own["accuracy"].max(),
                "log_odds": own.at[chosen, "gain"] - own.at[DEFAULT, "gain"],
            }
        )  # fmt: skip
    return pd.DataFrame(rows)
