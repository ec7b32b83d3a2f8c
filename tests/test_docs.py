"""The Python of README and docs runs as it stands."""

import importlib.util
import re

import pytest
import torch

from lib import heads, models, paths
from lib.heads import variants

README = (paths.PROJECT / "README.md").read_text(encoding="utf-8")
USE = (paths.PROJECT / "docs" / "use_a_head.md").read_text(encoding="utf-8")
LOOP = re.search(r"```python\n(.*?)```", README, re.S)[1]
BLOCKS = re.findall(r"```python\n(.*?)```", USE, re.S)
OWN = "ArcFace(classes, embedding_dim=64, s=16, m=0.3)"


@pytest.fixture
def tensors(digits):
    """The digits under the names that README gives them."""
    (x, y), (test_x, test_y) = ((digits.normalise(s.images), s.labels) for s in (digits.train, digits.test))
    return {"images": x, "labels": y, "test_images": test_x, "test_labels": test_y}


def test_the_loop_is_short_and_needs_torch_and_the_losses_alone():
    assert len(LOOP.splitlines()) <= 40
    imported = re.findall(r"^(?:from|import) ([\w.]+)", LOOP, re.M)
    assert set(imported) == {"torch", "lib.losses"} and LOOP.count(OWN) == 1


def test_the_loop_learns_and_prints_an_accuracy(tensors, capsys):
    torch.manual_seed(0)
    exec(LOOP, tensors)
    said = re.fullmatch(r"test accuracy (\d+\.\d)%\n", capsys.readouterr().out)
    assert said and float(said[1]) > 95


@pytest.mark.parametrize("name", {**heads.heads(), **variants.HEADS})
def test_the_loop_trains_every_head(name, tensors, capsys):
    torch.manual_seed(0)
    loop = LOOP.replace(OWN, f"heads.make({name!r}, classes, 64)").replace(
        "epochs, batch_size = 10", "epochs, batch_size = 3"
    )
    exec(loop, tensors | {"heads": heads})
    assert float(capsys.readouterr().out.split()[-1].rstrip("%")) > 50


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: re.findall(r"(?:from|import) ([\w.]+)", block)[0])
def test_blocks_run(block, tmp_path, monkeypatch):
    foreign = [name for name in ("lightning", "accelerate", "onnx") if re.search(rf"\b{name}\b", block)]
    if missing := [name for name in foreign if not importlib.util.find_spec(name)]:
        pytest.skip(f"{missing[0]} is not installed")
    monkeypatch.chdir(tmp_path)
    exec(block, {"__name__": "docs"})


def onnx_logits(module, x):
    """The output of a module for x, computed from its ONNX program by the package onnx itself."""
    from onnx.reference import ReferenceEvaluator

    program = torch.onnx.export(module.eval(), (x,), dynamo=True, verbose=False).model_proto
    return torch.from_numpy(ReferenceEvaluator(program).run(None, {program.graph.input[0].name: x.numpy()})[0])


@pytest.mark.parametrize("name", {**heads.heads(), **variants.HEADS})
def test_onnx_takes_every_head(name):
    head, x = heads.make(name, 10, 16), torch.randn(4, 16)
    torch.testing.assert_close(onnx_logits(head, x), head(x).detach(), rtol=0, atol=1e-5)


def test_onnx_takes_a_classifier():
    images = torch.randn(64, 3, 32, 32)
    model = models.Classifier(models.network("NarrowAirNet", images, 16), heads.make("ArcFace", 10, 16))
    torch.testing.assert_close(onnx_logits(model, images[:2]), model(images[:2]).detach(), rtol=0, atol=1e-4)


def test_onnx_does_not_take_the_small_network():
    network = models.network("SmallNet", torch.randn(64, 1, 28, 28), 16)
    with pytest.raises(torch.onnx.errors.OnnxExporterError):  # else the docs are to be changed
        torch.onnx.export(network.eval(), (torch.randn(2, 1, 28, 28),), dynamo=True, verbose=False)
