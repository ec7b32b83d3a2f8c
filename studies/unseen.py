"""How well do embeddings tell classes apart that training has never seen? What is read, from embeddings and labels.

Similarity is the cosine. Where nothing can be measured the value is NaN.
"""

import numpy as np
import torch
from sklearn.metrics import roc_curve
from torch import Tensor
from torch.nn import functional as F

FAR = np.logspace(-4, 0, 41)  # false accept rates at which a ROC curve is kept


def verification(x: Tensor, y: Tensor) -> dict:
    """Are two images of one class? ROC over all pairs of embeddings x (N, d), labels y (N,), by their cosine:
    tar, the true accept rate at each FAR, tar_1e-2 and tar_1e-3, and the equal error rate eer."""
    x = F.normalize(x)
    i, j = torch.triu_indices(len(x), len(x), 1)
    far, tar, _ = roc_curve((y[i] == y[j]).numpy(), (x @ x.T)[i, j].numpy())
    at = np.interp(FAR, far, tar)
    # frr - far falls along the curve: its zero is where both errors are equal
    eer = np.interp(0, far + tar - 1, far)
    return {
        "tar": at.tolist(), "tar_1e-2": np.interp(1e-2, far, tar).item(), "tar_1e-3": np.interp(1e-3, far, tar).item(),
        "eer": eer.item(),
    }  # fmt: skip


def retrieval(x: Tensor, y: Tensor, chunk: int = 500) -> dict[str, float]:
    """Recall@1, and mean average precision at R (Musgrave et al. 2020, arXiv 2003.08505, section 3.2).

    Every embedding x (N, d) in turn is the query and all others, of any label y (N,), are sorted by their cosine to it.
    R is the number of others of its class; the average precision is 1/R times the sum, over the ranks up to R that hold
    one of them, of the precision there. A query that is alone in its class (R = 0) is left out.
    """
    x, (_, number, count) = F.normalize(x), y.unique(return_inverse=True, return_counts=True)
    others = count[number] - 1  # (N,), R of every query
    first, precision = [], []
    for start in range(0, len(x), chunk):
        cos = x[start : start + chunk] @ x.T  # (chunk, N)
        cos.diagonal(start).fill_(-torch.inf)  # not its own neighbour
        R = others[start : start + chunk, None]
        nearest = cos.topk(max(1, int(R.max())), sorted=True).indices  # (chunk, largest R)
        rank = torch.arange(1, nearest.shape[1] + 1)
        hit = (number[nearest] == number[start : start + chunk, None]) & (rank <= R)
        precision.append((hit * hit.cumsum(1) / rank).double().sum(1) / R[:, 0])
        first.append(hit[:, 0].double())
    asked = others > 0
    return {
        "recall_at_1": torch.cat(first)[asked].mean().item(), "map_at_r": torch.cat(precision)[asked].mean().item(),
    }  # fmt: skip


def episodes(y: Tensor, group: Tensor, ways: int, shots: int, n: int, seed: int = 0) -> Tensor:
    """n tasks (n, ways, 1 + shots), as indices into labels y (N,): of each of its classes one query and the images that
    are known. Drawn with the seed, so that every loss gets the same.

    group (N,): the classes of a task are of one group, drawn with equal odds; for tasks over all classes give the same
    group to all. Classes of fewer than 1 + shots images take no part, nor do groups of fewer classes than ways: if none
    is left there are no tasks, (0, ways, 1 + shots).
    """
    draw = np.random.default_rng(seed)
    images = [np.flatnonzero(y.numpy() == c) for c in y.unique()]
    images = [own for own in images if len(own) > shots]
    table = np.full((len(images), max(map(len, images), default=0)), -1)  # a row per class, filled up with -1
    for row, own in zip(table, images, strict=True):
        row[: len(own)] = own
    of_group = [np.flatnonzero(group.numpy()[table[:, 0]] == g) for g in group.unique()] if images else []
    groups = [classes for classes in of_group if len(classes) >= ways]
    tasks = []
    for _ in range(n if groups else 0):
        classes = table[draw.permutation(groups[draw.integers(len(groups))])[:ways]]  # (ways, images)
        order = np.where(classes < 0, 1, draw.random(classes.shape)).argsort(1)
        tasks.append(np.take_along_axis(classes, order[:, : 1 + shots], 1))
    return torch.from_numpy(np.array(tasks, dtype=np.int64).reshape(-1, ways, 1 + shots))


def task_error(x: Tensor, tasks: Tensor) -> float:
    """Share of the queries of ``episodes`` that are nearest to the mean direction of another class's known images; x
    (N, d)."""
    x = F.normalize(x)
    known = F.normalize(x[tasks[..., 1:]].mean(2), dim=-1)  # (n, ways, d)
    return one_shot_error(known, x[tasks[..., 0]], torch.arange(tasks.shape[1]).expand(tasks.shape[:2]))


def one_shot_error(known: Tensor, queries: Tensor, answers: Tensor) -> float:
    """Share of queries (runs, n, d) whose nearest of the known images (runs, C, d) of their run is not that of number
    answers (runs, n)."""
    cos = F.normalize(queries, dim=-1) @ F.normalize(known, dim=-1).mT  # (runs, n, C)
    return (cos.argmax(-1) != answers).double().mean().item()
