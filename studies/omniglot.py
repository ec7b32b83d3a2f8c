"""A thousand classes, and classes never seen: Omniglot under ``studies/PROTOCOL.md``.

A run trains on characters of the background alphabets, on 16 drawings of each (the other four are for validation).

    trial   trains on 23 of the 30 background alphabets, and is judged by MAP@R on the characters of the other seven;
            it reads no image of the evaluation alphabets
    final   trains on all 30, or on some of their characters, and reads the 20 evaluation alphabets

``python -m studies omniglot`` trains the trials, the best of them again (finalists), then the final runs and those on
fewer characters.
"""

import dataclasses
import functools
import io
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from lib import data as datasets
from lib import metrics, models, paths, train
from lib.sets import omniglot
from studies import checked, records, runs, search, unseen, verdicts
from studies.beyond_accuracy import only, subset
from studies.study import Study

MEASURE = "map_at_r"  # on alphabets that are held out; it chooses
# primary comparison: AdaLoss minus ArcFace. Metric -> title, factor, unit, equivalence bound, whether lower is better
PRIMARY = ("AdaLoss", "ArcFace")
QUESTIONS = {
    "map_at_r": ("MAP@R", 100, "points", 1.0, False),
    "one_shot_error": ("one-shot error, official runs", 100, "points", 1.0, True),
}
CORE = ("ArcFace", "AdaLoss", "Softmax", "NormFace")
LOSSES = (
    *CORE, "SphereFace", "CosFace", "CombinedMargin", "CurricularFace", "AdaFace", "KappaFace", "Triplet",
)  # fmt: skip
SEEDS, SECONDARY_SEEDS, CLASSES_SEEDS = 20, 10, 5
# (characters, drawings of each): the same drawings of more characters, then 1,600 images of more characters;
# 0 for all 964. Every one of these runs takes the same number of steps
LEVELS = ((10, 16), (30, 16), (100, 16), (300, 16), (0, 16), (200, 8), (400, 4), (800, 2))
HELD_OUT = slice(3, None, 4)  # of the background alphabets in the order of their names, in trials
TASKS, PAIRED_DRAWINGS = 1000, 5  # few-shot tasks of a kind; drawings of a character that are compared in pairs
MAP_M, MAP_S = (0.0, 0.15, 0.3, 0.5, 0.8), (4.0, 8.0, 16.0, 32.0, 64.0)  # margins of ArcFace in radians, and scales
MAP_ADALOSS = 0.5  # its m
MAP_LR, MAP_SEEDS = 0.756, 3  # the rate at which most finalists with a scale did best
# numbers of characters at which the scale is varied, 0 for all 728 of a trial
SCALE_LEVELS, SCALE_S = (10, 30, 100, 300, 0), (2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
SCALE_M = 0.3  # ArcFace's margin there, its default
KEPT_ALPHABET = "Angelic"  # all of its drawings are among the embeddings that are kept


@dataclass(frozen=True)
class Run(runs.Config):
    """Everything that decides the result of a run: a runs.Config, and

    trial: is it judged on background alphabets that are held out? classes: characters that it trains on, drawn with its
    seed, fewer a part of more; 0 for all. drawings: of each of them, drawn likewise. train_size: images of an epoch, 0
    for as many as all characters have, or all that a trial trains on.
    """

    trial: bool = False
    classes: int = 0
    drawings: int = 16

    limits = runs.RANGES | {"classes": (0, 964), "drawings": (1, 16)}
    closed = False

    def __post_init__(self):
        super().__post_init__()
        checked.choose("data set", self.data, ("omniglot",))
        if self.classes == 1:
            raise ValueError("classes must be 2 or more, or 0 for all characters, got 1")


@dataclass(frozen=True)
class FourOfAKind(datasets.Data):
    """Data whose batches hold four images of a class together, for triplet loss: at random, few have another one."""

    def order(self, generator: torch.Generator) -> Tensor:
        shuffled = super().order(generator)
        by_class = shuffled[self.train.labels.cpu()[shuffled].argsort(stable=True)]
        fours = by_class[: len(by_class) // 4 * 4].view(-1, 4)
        return fours[torch.randperm(len(fours), generator=generator)].flatten()


def alphabet(character: str) -> str:
    """Greek of Greek/character05."""
    return character.split("/")[0]


@dataclass(frozen=True)
class Unseen:
    """Characters that a run does not train on: their drawings, labelled from 0, and their names."""

    drawings: datasets.Split
    names: list[str]

    @property
    def alphabets(self) -> Tensor:
        """The number of every drawing's alphabet, (N,)."""
        found = sorted(set(map(alphabet, self.names)))
        return torch.tensor([found.index(alphabet(name)) for name in self.names])[self.drawings.labels.cpu()]


def prepare(run: Run) -> tuple[datasets.Data, Unseen]:
    """The data of a run, its characters renumbered, without test images; and what it is read on."""
    data = runs.load("omniglot", crop_padding=run.crop_padding)
    everything, known = len(data.train), data.train.labels.unique().cpu()  # all, but in the smoke profile
    if run.trial:
        names = sorted({alphabet(data.classes[c]) for c in known})
        held = torch.tensor([alphabet(data.classes[c]) in names[HELD_OUT] for c in known])
        both = datasets.Split(
            *(torch.cat([getattr(s, k) for s in (data.train, data.val)]) for k in ("images", "labels"))
        )
        other = Unseen(only(both, known[held]), [data.classes[c] for c in known[held]])
        known = known[~held]
    else:
        numbers = data.test.labels.unique().cpu()
        other = Unseen(only(data.test, numbers), [data.unseen[c - len(data.classes)] for c in numbers])
    if run.classes:
        if not 2 <= run.classes <= len(known):
            raise ValueError(f"{run.classes} of {len(known)} characters are asked for: take 2 or more of them")
        known = known[torch.randperm(len(known), generator=torch.Generator().manual_seed(run.seed))[: run.classes]]
    part, val = only(data.train, known), only(data.val, known)
    part = part[subset(part.labels, torch.full((len(known),), run.drawings), run.seed)]
    order = torch.randperm(len(part), generator=torch.Generator().manual_seed(0))  # so that each part of it is mixed
    size = run.train_size or (len(part) if run.trial else everything)
    data = dataclasses.replace(
        data, train=part[order[torch.arange(size) % len(part)]], val=val, test=data.test[:0],
        classes=[data.classes[c] for c in known.sort().values], unseen=(),
    )  # fmt: skip
    if run.head == "Triplet":
        data = FourOfAKind(**{field.name: getattr(data, field.name) for field in dataclasses.fields(data)})
    return data, other


@functools.cache
def official() -> tuple[Tensor, Tensor, Tensor]:
    """The official one-shot runs (``omniglot.one_shot_runs``)."""
    return omniglot.one_shot_runs(paths.PROJECT / "data")


# ---------------------------------------------------------------- one run


def execute(run: Run, progress: bool = False) -> tuple[models.Classifier, dict]:
    """Train one run; returns the model and its record. Nothing is written.

    The metrics are val_accuracy, on other drawings of the known characters, ``retrieval`` among those never seen, of a
    final run also those of ``final_metrics``; and core_minutes, the processor's time for it all.
    """
    start = time.process_time()
    data, other = prepare(run)
    _ = run.trial or official()  # files that are missing are missed before the training
    watched = dataclasses.replace(data, val=data.val[::8])  # while it trains
    model, history = runs.fit(run, watched, progress)

    def measured():
        x, y = train.embed(model, data, other.drawings), other.drawings.labels.cpu()
        found = {
            "val_accuracy": metrics.accuracy(train.predict(model, data, data.val), data.val.labels.cpu()),
            "trained_on": len(data.classes), **unseen.retrieval(x, y),
        }  # fmt: skip
        if not run.trial:
            found |= final_metrics(model, data, x, other)
        if hasattr(model.head, "m_max") and "margins" in history:
            found["at_bound"] = float(np.mean(np.array(history["margins"][-1]) >= model.head.m_max))
        return found | {"core_minutes": (time.process_time() - start) / 60}

    return model, records.record(run, measured, short(history), data.train.labels.device, history["seconds"][-1])


def short(history: dict) -> dict:
    """A history with the mean and the spread over the classes in place of values by class: there are hundreds."""
    found = {}
    for key, values in history.items():
        if np.ndim(values) == 2:
            found |= {f"{key}_mean": np.mean(values, 1).tolist(), f"{key}_spread": np.std(values, 1).tolist()}
        else:
            found[key] = values
    return found


def embed(model: models.Classifier, data: datasets.Data, images: Tensor) -> Tensor:
    """Embeddings (..., d) of uint8 images (..., 1, H, W)."""
    flat = images.flatten(0, -4).to(data.train.labels.device)
    x = train.embed(model, data, datasets.Split(flat, torch.zeros(len(flat), dtype=torch.int64)))
    return x.view(*images.shape[:-3], -1)


def final_metrics(model: models.Classifier, data: datasets.Data, x: Tensor, other: Unseen) -> dict:
    """What only a final run reads, from embeddings x (N, d) of the evaluation drawings and from the official runs.

    one_shot_error: on the official runs. error_within_1 to error_across_5: of 20-way tasks with one or five known
    drawings of each character, within an alphabet or across all. ``unseen.verification`` over all pairs of five
    drawings of every character.
    """
    characters, tests, answers = official()
    y, alphabets = other.drawings.labels.cpu(), other.alphabets
    found = {
        "one_shot_error": unseen.one_shot_error(embed(model, data, characters), embed(model, data, tests), answers)
    }
    for kind, group in (("within", alphabets), ("across", torch.zeros_like(y))):
        for shots in (1, 5):
            found[f"error_{kind}_{shots}"] = unseen.task_error(x, unseen.episodes(y, group, 20, shots, TASKS))
    some = subset(y, torch.full((len(other.names),), PAIRED_DRAWINGS), seed=0)
    pairs = unseen.verification(x[some], y[some])
    return found | pairs | {"tar_1e-4": pairs["tar"][0]}


# ---------------------------------------------------------------- all runs


def default(head: str, **changes) -> Run:
    """A run of a loss in the setting of the study, at its defaults."""
    return Run("omniglot", head, **runs.RECIPES["omniglot"] | changes)


def trials(full: bool = False) -> list[Run]:
    """All trials, the first ones of all losses first."""
    by_loss = [search.trials(default(head, trial=True)) for head in LOSSES]
    return [trial for same in zip(*by_loss, strict=True) for trial in same]


def wider(full: bool = False) -> list[Run]:
    """Further trials of the losses whose best one lies at an end of a range. Raises Incomplete."""
    planned, found = TRIALS.planned(), TRIALS.read()
    heads = dict.fromkeys(run.head for run in planned)
    return [trial for head in heads for trial in search.wider(default(head, trial=True), planned, found, MEASURE)]


def finalists(full: bool = False) -> list[Run]:
    return search.finalists([*TRIALS.planned(), *WIDER.planned()], TRIALS.read() | WIDER.read(), MEASURE)


def chosen() -> dict[str, Run]:
    """By loss what the final runs are made with. Raises Incomplete."""
    best = search.chosen(FINALISTS.planned(), FINALISTS.read(), MEASURE)
    return {head: dataclasses.replace(run, trial=False) for head, run in best.items()}


def controls() -> dict[str, Run]:
    """``search.controls`` at AdaLoss's scale and learning rate, with the mean and the spread of its margins at the end
    of the training of the chosen finalist (its first seed)."""
    run = chosen()["AdaLoss"]
    history = FINALISTS.read()[dataclasses.replace(run, trial=True)]["history"]
    return search.controls(run, history["margins_mean"][-1], history["margins_spread"][-1])


def final(full: bool = False) -> dict[Run, str]:
    """The final runs and the name of their arm, seeds in the outer loop. Raises Incomplete."""
    arms = chosen() | controls()
    return {
        dataclasses.replace(run, seed=seed): name
        for seed in range(SEEDS)
        for name, run in arms.items()
        if seed < SECONDARY_SEEDS or name in PRIMARY or name not in LOSSES
    }


def fewer(full: bool = False) -> list[Run]:
    """Four losses on fewer characters, at what was chosen for nearly all, seeds in the outer loop."""
    best = chosen()
    return [
        dataclasses.replace(best[head], seed=seed, classes=classes, drawings=drawings)
        for seed in range(CLASSES_SEEDS)
        for classes, drawings in LEVELS
        for head in CORE
    ]


def margin_map(full: bool = False) -> list[Run]:
    """ArcFace by margin and scale, without a margin NormFace, and AdaLoss at one margin, judged like trials; seeds in
    the outer loop."""
    points = [("ArcFace", {"m": m}) if m else ("NormFace", {}) for m in MAP_M]
    points.append(("AdaLoss", search.FREE | {"m": MAP_ADALOSS}))
    return [
        default(head, trial=True, lr=MAP_LR, constants=constants | {"s": s}, seed=seed)
        for seed in range(MAP_SEEDS)
        for s in MAP_S
        for head, constants in points
    ]


def references(full: bool = False) -> list[Run]:
    """The defaults of the two other losses with which ``recommend`` compares, in the setting of the map."""
    points = (("CosFace", {"m": 0.2}), ("CombinedMargin", {"m2": 0.2, "m3": 0.1}))
    return [
        default(head, trial=True, lr=MAP_LR, constants=constants | {"s": 16.0}, seed=seed)
        for seed in range(MAP_SEEDS)
        for head, constants in points
    ]


def scales(full: bool = False) -> list[Run]:
    """NormFace and ArcFace by scale and number of characters, judged like trials, all in as many steps; seeds in the
    outer loop."""
    images = 728 * 16  # of an epoch, also where there are fewer
    return [
        default(
            head, trial=True, lr=MAP_LR, constants=constants | {"s": s}, seed=seed, classes=classes,
            train_size=images if classes else 0,
        )
        for seed in range(MAP_SEEDS)
        for classes in SCALE_LEVELS
        for s in SCALE_S
        for head, constants in (("NormFace", {}), ("ArcFace", {"m": SCALE_M}))
    ]  # fmt: skip


def kept(run: Run) -> dict:
    """What is kept of the first seed of the losses in CORE (not of controls), from which pictures are drawn.

    Embeddings of length one, in whole numbers from -127 to 127: characters and tests (20, 20, d) of the official runs;
    alphabet (N, d), all drawings of ``KEPT_ALPHABET``, in the order of the data; first (659, d), a drawing of every
    evaluation character. margins (C,), where the loss has them. Raises OSError if the run is not kept.
    """
    path = _path(run)
    if not path.exists():
        raise OSError(f"{path.name} is missing: restore it from git")
    with np.load(path) as file:
        return dict(file)


def _path(run: Run) -> Path:
    return paths.folder("results") / "embeddings" / f"omniglot_{run.head}_seed{run.seed}_{run.key}.npz"


def _pack(run: Run, model: models.Classifier, record: dict) -> bytes | None:
    if model is None or run.seed or run.classes or FINAL.arms().get(run) not in CORE:  # "same mean" is an ArcFace too
        return None
    data, other = prepare(run)
    images, y = other.drawings.images, other.drawings.labels.cpu()
    first = torch.tensor([int((y == c).nonzero()[0]) for c in range(len(other.names))])
    own = torch.tensor([alphabet(name) == KEPT_ALPHABET for name in other.names])[y]
    characters, tests, _ = official()
    parts = {"characters": characters, "tests": tests, "alphabet": images[own], "first": images[first]}
    packed = {k: (127 * F.normalize(embed(model, data, v), dim=-1)).round().char().numpy() for k, v in parts.items()}
    if hasattr(model.head, "margins"):
        packed["margins"] = model.head.margins.cpu().numpy()
    file = io.BytesIO()
    np.savez_compressed(file, **packed)
    return file.getvalue()


def _keep(run: Run, packed: bytes) -> None:
    paths.write(_path(run), packed)


_counted = search.count_failures(execute, MEASURE)
TRIALS = Study(
    "omniglot_trials", "Which constants suit each loss on Omniglot? Twelve trials each", Run, trials, _counted,
)  # fmt: skip
WIDER = Study(
    "omniglot_wider", "Six trials more where the best one on Omniglot lies at an end of a range", Run, wider, _counted,
    file="omniglot_trials", needs="omniglot_trials",
)  # fmt: skip
FINALISTS = Study(
    "omniglot_finalists", "The three best trials of each loss on Omniglot again", Run, finalists, _counted,
    file="omniglot_trials", needs="omniglot_wider",
)  # fmt: skip
FINAL = Study(
    "omniglot_final", "Characters never seen: does an adaptive margin beat a fixed one, and does a margin pay?", Run,
    final, _counted, file="omniglot", needs="omniglot_finalists", paired=True, extra=_pack, keep=_keep,
)  # fmt: skip
CLASSES = Study(
    "omniglot_classes", "From how many classes on does a margin pay?", Run, fewer, _counted, file="omniglot",
    needs="omniglot_finalists", paired=True,
)  # fmt: skip
MAP = Study(
    "omniglot_map", "Margin or scale: which of the two helps with a thousand classes?", Run, margin_map, _counted,
    paired=True,
)  # fmt: skip
REFERENCES = Study(
    "omniglot_references", "Two losses more beside the map, so that the recommender can learn from it", Run, references,
    _counted, file="omniglot_map",
)  # fmt: skip
SCALES = Study(
    "omniglot_scales", "Does the best scale follow the number of classes?", Run, scales, _counted, paired=True,
)  # fmt: skip
STUDIES = [TRIALS, WIDER, FINALISTS, FINAL, CLASSES, MAP, REFERENCES, SCALES]


def finished() -> pd.DataFrame:
    """The rows of the final runs of complete seeds, with arm in place of head, and stalled. Raises Incomplete."""
    names = FINAL.arms()
    found = FINAL.complete()
    frame = records.frame(found.values()).assign(head=[names[run] for run in found])
    return frame.assign(stalled=verdicts.stalled(frame))


def by_classes() -> pd.DataFrame:
    """The rows of the runs on fewer characters of complete seeds, with stalled, judged within a level. Raises
    Incomplete."""
    frame = CLASSES.finished()
    levels = [rows.assign(stalled=verdicts.stalled(rows)) for _, rows in frame.groupby(["classes", "drawings"])]
    return pd.concat(levels).loc[frame.index]
