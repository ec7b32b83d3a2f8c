"""The triplet arm; what holds for every head is in test_losses and test_train."""

import copy
import dataclasses
import math

import pytest
import torch
import torch.distributed as dist
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from test_losses import at, make
from test_train import build, fit
from torch.nn import functional as F

from lib import heads, metrics, models, train


def batch_hard(x, y, m):
    """The loss by its definition, anchor by anchor."""
    distance, terms = torch.cdist(F.normalize(x), F.normalize(x)), []
    for a in range(len(x)):
        positives = [distance[a, p] for p in range(len(x)) if p != a and y[p] == y[a]]
        negatives = [distance[a, n] for n in range(len(x)) if y[n] != y[a]]
        terms.append(max(positives) - min(negatives) + m)
    terms = torch.stack(terms).clamp_min(0)
    return terms.sum() / (terms > 0).sum().clamp_min(1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("w", [0.0, 0.5, 1.0])
def test_loss_by_its_definition(seed, w):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(24, 5, generator=g, dtype=torch.float64).requires_grad_()
    y = torch.randint(4, (24,), generator=g)
    head = heads.make("Triplet", 4, 5, m=0.3)
    head.margin_scale = w
    ours, theirs = head.loss(x, y), batch_hard(x, y, w * 0.3)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(*(torch.autograd.grad(loss, x)[0] for loss in (ours, theirs)), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_the_same_bits_as_pytorch_metric_learning(seed):
    g = torch.Generator().manual_seed(seed)
    x, y = torch.randn(61, 16, generator=g).requires_grad_(), torch.randint(10, (61,), generator=g)
    theirs = TripletMarginLoss(margin=0.2)(x, y, BatchHardMiner()(x, y))
    ours = heads.make("Triplet", 10, 16).loss(x, y)
    assert torch.equal(ours, theirs)
    assert torch.equal(*(torch.autograd.grad(loss, x)[0] for loss in (ours, theirs)))


def test_the_same_loss_where_values_cannot_be_read(monkeypatch):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(61, 16, generator=g).requires_grad_(), torch.randint(10, (61,), generator=g)
    head = heads.make("Triplet", 10, 16)
    expected = head.loss(x, y)
    monkeypatch.setattr("lib.heads.triplet.readable", lambda x: False)
    torch.testing.assert_close(
        [(loss, *torch.autograd.grad(loss, x)) for loss in (head.loss(x, y),)],
        [(expected, *torch.autograd.grad(expected, x))],
    )


def test_loss_by_hand():
    # anchor 0: its positive at 60 degrees is 1 away, its negative at 90 is 2 sin 45 away
    x, y = 3 * at(0, 60, 90, 180), torch.tensor([0, 0, 1, 1])
    chord = {degrees: 2 * math.sin(math.radians(degrees / 2)) for degrees in (30, 60, 90, 120)}
    terms = [
        chord[60] - chord[90] + 0.2, chord[60] - chord[30] + 0.2, chord[90] - chord[30] + 0.2,
        chord[90] - chord[120] + 0.2,
    ]  # fmt: skip
    positive = [t for t in terms if t > 0]
    assert heads.make("Triplet", 2, 2, m=0.2).loss(x, y).item() == pytest.approx(
        sum(positive) / len(positive), abs=1e-5
    )


def test_loss_does_not_know_the_centres():
    x, y = at(0, 50, 90, 180).requires_grad_(), torch.tensor([0, 0, 1, 1])
    head = heads.make("Triplet", 2, 2)
    head.loss(x, y).backward()
    assert head.W.grad is None and x.grad.norm() > 0


def test_loss_stays_in_fp32_under_autocast():
    x, y = torch.randn(8, 4).bfloat16().requires_grad_(), torch.arange(2).repeat(4)
    head = heads.make("Triplet", 2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        loss = head.loss(x, y)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, head.loss(x.float(), y))


@pytest.mark.parametrize("y", [[0, 0, 0], [0, 1, 2]])  # no negative; no positive
def test_a_batch_without_triplets_has_no_loss(y):
    x = torch.randn(3, 4, requires_grad=True)
    loss = heads.make("Triplet", 3, 4).loss(x, torch.tensor(y))
    loss.backward()
    assert loss == 0 and (x.grad is None or x.grad.abs().max() == 0)


def test_labels_change_no_logit():
    head = make("Triplet", at(0, 90, 180))
    x, y = at(20, 100), torch.tensor([1, 0])
    assert torch.equal(head(x), head(x, y)) and torch.equal(head(x), make("NormFace", head.W.data)(x))


def test_renew_takes_mean_directions():
    head = make("Triplet", at(0, 90, 180))
    head.renew(torch.cat([9 * at(10), at(50), at(120)]), torch.tensor([0, 0, 1]))
    torch.testing.assert_close(head.W.data, at(30, 120, 180))  # class 2 keeps its row


def test_the_end_of_an_epoch_renews_the_centres():
    head = make("Triplet", at(0, 90, 180))
    head.epoch_end(lambda: (at(10, 50), torch.tensor([0, 0])))
    torch.testing.assert_close(head.W.data, at(30, 90, 180))
    heads.make("ArcFace", 3, 2).epoch_end(lambda: 1 / 0)  # which needs no embeddings


def test_fit_renews_the_centres_and_counts_the_time(digits, monkeypatch):
    import time

    calls, clock = [], time.perf_counter
    renew = type(heads.make("Triplet", 2, 2)).renew
    monkeypatch.setattr("lib.heads.triplet.Triplet.renew", lambda head, x, y: calls.append(len(x)) or renew(head, x, y))
    monkeypatch.setattr(train.time, "perf_counter", lambda: clock() + 100 * len(calls))
    model = build(digits, "Triplet")
    history = fit(model, digits, epochs=2)
    assert calls == [len(digits.train)] * 2 and history["seconds"][0] > 100 and history["seconds"][1] > 200
    x, y = train.embed(model, digits, digits.train), digits.train.labels
    centres = torch.stack([F.normalize(x[y == c]).mean(0) for c in range(10)])
    torch.testing.assert_close(model.head.W.data, F.normalize(centres), atol=1e-5, rtol=0)
    assert history["val_accuracy"][-1] == metrics.accuracy(train.predict(model, digits, digits.val), digits.val.labels)


def test_only_part_of_a_large_set_is_embedded(digits, monkeypatch):
    many = dataclasses.replace(digits, train=digits.train[torch.arange(10_500) % len(digits.train)])
    seen = []
    monkeypatch.setattr("lib.heads.triplet.Triplet.renew", lambda head, x, y: seen.append(len(x)))
    fit(build(digits, "Triplet"), many)
    assert seen == [10_000]


def rank_of_two(rank, folder):
    """One of two ranks with half of the images each; any deviation from the mean of their gradients raises."""
    torch.set_num_threads(1)
    g = torch.Generator().manual_seed(0)
    plain = models.Classifier(torch.nn.Linear(6, 4), heads.make("Triplet", 3, 4))
    for p in plain.parameters():
        torch.nn.init.normal_(p, generator=g)
    batches = [(torch.randn(24, 6, generator=g), torch.arange(24) % 3) for _ in range(3)]
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    wrapped = copy.deepcopy(plain)
    parallel = torch.nn.parallel.DistributedDataParallel(wrapped)
    for images, y in batches:  # a gradient that it waits for in vain is told in the second one
        for net, parts in ((parallel, [rank]), (plain, [0, 1])):
            net.zero_grad()
            for part in parts:
                loss, _ = net(images.chunk(2)[part], y.chunk(2)[part])
                (loss / len(parts)).backward()
        torch.testing.assert_close(wrapped.network.weight.grad, plain.network.weight.grad)
        assert wrapped.network.weight.grad.abs().max() > 0.01
        for net in (wrapped, plain):
            torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1).step()
    dist.barrier()
    dist.destroy_process_group()


def test_distributed_data_parallel_on_two_ranks(tmp_path):
    torch.multiprocessing.spawn(rank_of_two, args=(tmp_path,), nprocs=2)
