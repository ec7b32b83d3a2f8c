"""How far does one embedding get? A recipe for the official one-shot runs of Omniglot (Lake et al. 2015).

What is added to the runs of ``studies.omniglot``: a larger network, a longer training, drawings that are turned and
stretched at random, and every character turned by quarters as three further ones. Arms of the recipe are chosen on
background alphabets that are held out; the official runs are read by the final runs alone.

There are two rounds. In the first some runs seemed to stall, with losses like those of all others: what failed was the
reading. Batch normalisation reads by running statistics, which here follow the last few batches too closely. In the
second they are taken anew after the training (Wu and Johnson 2021, arXiv:2105.07576, section 3).
"""

import dataclasses
import functools
import math
import time
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

from lib import data as datasets
from lib import device, metrics, models, train
from studies import omniglot, records, runs, search, unseen
from studies.study import Incomplete, Study

MEASURE = "right_within_1"  # share of 20-way tasks with one known drawing, within an alphabet held out; it chooses
TRIAL_SEEDS, SEEDS, OTHER_SEEDS = (1000, 1001), 10, 3  # no final run has a trial's weights and order
TURN, STRETCH, SHEAR, MOVE = math.radians(12), 0.2, 0.2, 0.12  # at most, in either direction; MOVE: of half the side


@dataclass(frozen=True)
class Run(omniglot.Run):
    """An omniglot.Run, and affine: how much of ``TURN`` and the like a training image is changed by; quarters: are a
    character's three quarter turns characters of their own? An epoch has as many images with them as without.
    renewed: are the statistics of batch normalisation taken anew after the training, as in ``renew``?"""

    affine: float = 0.0
    quarters: bool = False
    renewed: bool = False

    limits = omniglot.Run.limits | {"affine": (0, 2)}


@dataclass(frozen=True)
class Affine(datasets.Data):
    """Data whose training images are turned, stretched, sheared and moved at random, by up to so many times the limits
    of this module, in passes over so many images (0: all)."""

    affine: float = 1.0
    images: int = 0

    def draw(self, B: int, generator: torch.Generator) -> Tensor:
        """(6, B), drawn on the CPU: turn, two stretches, shear and two moves."""
        most = torch.tensor([TURN, STRETCH, STRETCH, SHEAR, MOVE, MOVE])[:, None]
        return self.affine * most * (2 * torch.rand(6, B, generator=generator) - 1)

    def augment(self, images: Tensor, drawn: Tensor | torch.Generator) -> Tensor:
        """uint8 images (B, channels, H, W) -> float, in [0, 255]."""
        drawn = drawn if isinstance(drawn, Tensor) else self.draw(len(images), drawn).to(images.device)
        turn, x, y, shear, dx, dy = drawn
        rows = (
            torch.stack([x.exp() * turn.cos(), x.exp() * (shear - turn.sin()), dx], 1),
            torch.stack([y.exp() * turn.sin(), y.exp() * turn.cos(), dy], 1),
        )
        grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
        return F.grid_sample(images.float(), grid, align_corners=False)

    def order(self, generator: torch.Generator) -> Tensor:
        order = super().order(generator)
        return order[: self.images or len(order)]


def prepare(run: Run) -> tuple[datasets.Data, omniglot.Unseen]:
    """As ``omniglot.prepare``, with the augmentation of the run."""
    data, other = omniglot.prepare(run)
    images, labels, classes = data.train.images, data.train.labels, data.classes
    if run.quarters:
        turned = [images.rot90(k, (2, 3)) for k in range(4)]
        labels = torch.cat([labels + k * len(classes) for k in range(4)])
        names = [f"{name} turned {90 * k}°" for k in range(1, 4) for name in classes]
        data = dataclasses.replace(data, train=datasets.Split(torch.cat(turned), labels), classes=[*classes, *names])
    fields = {field.name: getattr(data, field.name) for field in dataclasses.fields(data)}
    return Affine(**fields, affine=run.affine, images=len(images)), other


def renew(network: nn.Module, data: datasets.Data) -> None:
    """Set the running statistics of batch normalisation to the means over all training images, without augmentation: as
    they are read, not as the last batches were."""
    images = data.train.images
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).to(images.device)
    with device.autocast(images.device):
        update_bn((data.normalise(images[rows]) for rows in order.split(128)), network)


def execute(run: Run, progress: bool = False) -> tuple[models.Classifier, dict]:
    """Train one run; returns the model and its record. Nothing is written.

    A trial has the metrics map_at_r, recall_at_1 and ``MEASURE``, of characters of the alphabets that are held out; a
    final run those of ``omniglot.final_metrics``. core_minutes: the processor's time for it all.
    """
    start = time.process_time()
    data, other = prepare(run)
    _ = run.trial or omniglot.official()
    model, history = runs.fit(run, dataclasses.replace(data, val=data.val[::8]), progress)
    if run.renewed:
        renew(model.network, data)

    def measured():
        x, y = train.embed(model, data, other.drawings), other.drawings.labels.cpu()
        found = {
            "val_accuracy": metrics.accuracy(train.predict(model, data, data.val), data.val.labels.cpu()),
            "parameters": sum(p.numel() for p in model.network.parameters()), **unseen.retrieval(x, y),
        }  # fmt: skip
        if run.trial:
            found[MEASURE] = 1 - unseen.task_error(x, unseen.episodes(y, other.alphabets, 20, 1, omniglot.TASKS))
        else:
            found |= omniglot.final_metrics(model, data, x, other)
        return found | {"core_minutes": (time.process_time() - start) / 60}

    return model, records.record(
        run, measured, omniglot.short(history), data.train.labels.device, history["seconds"][-1]
    )


# ---------------------------------------------------------------- all runs

BASE = {
    "network": "NarrowAirNet", "embedding_dim": 256, "epochs": 20, "batch_size": 128, "lr": 0.2, "margin_warmup": 5.0,
}  # fmt: skip
LOSS = {"head": "ArcFace", "constants": {"s": 16.0, "m": 0.3}}  # the defaults, written out
# what differs from the arm before, one thing at a time; the first is the network of the other runs on Omniglot
ARMS: dict[str, dict] = {
    "the small network": {"network": "SmallNet", "embedding_dim": 128},
    "a larger network": {},
    "affine maps": {"affine": 1.0},
    "affine maps, half as strong": {"affine": 0.5},
    "quarter turns": {"affine": 1.0, "quarters": True},
    "a smaller scale": {"affine": 1.0, "quarters": True, "constants": {"s": 8.0, "m": 0.3}},
    "a larger margin": {"affine": 1.0, "quarters": True, "constants": {"s": 16.0, "m": 0.5}},
    "a smaller rate": {"affine": 1.0, "quarters": True, "lr": 0.1},
    "twice as long": {"affine": 1.0, "quarters": True, "epochs": 40, "margin_warmup": 10.0},
}


# the second round: all with new statistics, affine maps and quarter turns, but for what is said
TURNED = {"affine": 1.0, "quarters": True, "renewed": True}
SECOND: dict[str, dict] = {
    "new statistics": TURNED,
    "no quarter turns": TURNED | {"quarters": False},
    "stronger affine maps": TURNED | {"affine": 1.5},
    "a smaller scale": TURNED | {"constants": {"s": 8.0, "m": 0.3}},
    "a larger margin": TURNED | {"constants": {"s": 16.0, "m": 0.5}},
    "a smaller rate": TURNED | {"lr": 0.1},
    "twice as long": TURNED | {"epochs": 40, "margin_warmup": 10.0},
    "a wider network": TURNED | {"network": "AirNet"},
    "wider and twice as long": TURNED | {"network": "AirNet", "epochs": 40, "margin_warmup": 10.0},
}


def arm(changes: dict, seed: int, **others) -> Run:
    """A run of an entry of ``ARMS`` or ``SECOND``."""
    return Run("omniglot", seed=seed, **LOSS | BASE | changes | others)


def trials(arms: dict, full: bool = False) -> dict[Run, str]:
    """Every arm of a round, seeds in the outer loop."""
    return {arm(changes, seed, trial=True): name for seed in TRIAL_SEEDS for name, changes in arms.items()}


def finished(study: Study) -> pd.DataFrame:
    """The rows of complete seeds with the names of their arms. The runs take hours and are not trained again by
    RETRAIN=1. Raises Incomplete."""
    names, found, planned = study.arms(), study.read(), study.planned()
    begun = {run.seed for run in planned if run not in found}
    if not (whole := [run for run in planned if run.seed not in begun]):
        raise Incomplete(f"{study.path.name} holds no complete seed: `python -m studies {study.name}` trains them")
    return records.frame(found[run] for run in whole).assign(arm=[names[run] for run in whole])


def best_arm(study: Study) -> str:
    """The arm that is right most often in the mean over the trials' seeds. Raises Incomplete."""
    return finished(study).groupby("arm", sort=False)[MEASURE].mean().idxmax()


def final(study: Study, arms: dict, full: bool = False) -> dict[Run, str]:
    """The chosen arm, and in fewer seeds the same with other heads; seeds in the outer loop. Raises Incomplete."""
    best = arms[best_arm(study)]
    constants = (LOSS | best)["constants"]
    heads = {
        "ArcFace": constants, "NormFace": {"s": constants["s"]}, "Softmax": {}, "AdaLoss": constants | search.FREE,
    }  # fmt: skip
    return {
        arm(best, seed, head=head, constants=own): head
        for seed in range(SEEDS)
        for head, own in heads.items()
        if head == "ArcFace" or seed < OTHER_SEEDS
    }


def own_scale(full: bool = False) -> dict[Run, str]:
    """NormFace in the chosen arm of the second round, at the scale that suits it on the small network
    (``omniglot_scales``): there it loses by any other. Raises Incomplete."""
    best = SECOND[best_arm(SECOND_TRIALS)]
    return {arm(best, seed, head="NormFace", constants={"s": 8.0}): "NormFace, s = 8" for seed in range(SEEDS)}


_counted = search.count_failures(execute, MEASURE)
TRIALS = Study(
    "one_shot_trials", "Which recipe names a character from one drawing? Arms of one, on alphabets held out", Run,
    functools.partial(trials, ARMS), _counted,
)  # fmt: skip
FINAL = Study(
    "one_shot_final", "How far does one embedding get on Omniglot's official one-shot runs?", Run,
    functools.partial(final, TRIALS, ARMS), _counted, file="one_shot", needs="one_shot_trials", paired=True,
)  # fmt: skip
SECOND_TRIALS = Study(
    "one_shot_trials_2", "Which recipe, with the statistics of batch normalisation taken anew?", Run,
    functools.partial(trials, SECOND), _counted, file="one_shot_trials",
)  # fmt: skip
SECOND_FINAL = Study(
    "one_shot_final_2", "How far does the embedding of the second round get?", Run,
    functools.partial(final, SECOND_TRIALS, SECOND), _counted, file="one_shot", needs="one_shot_trials_2", paired=True,
)  # fmt: skip
OWN_SCALE = Study(
    "one_shot_scale", "Does a margin still pay in the second round where NormFace has a scale of its own?", Run,
    own_scale, _counted, file="one_shot", needs="one_shot_trials_2", paired=True,
)  # fmt: skip
STUDIES = [TRIALS, FINAL, SECOND_TRIALS, SECOND_FINAL, OWN_SCALE]
