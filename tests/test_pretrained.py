"""Trained weights that are kept: made, loaded, and refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lib import train
from studies import pretrained, records, runs


@pytest.fixture
def kept(project, monkeypatch):
    """A tiny network of the digits, trained and kept under the name "tiny"."""
    config = runs.recipe("digits", "AdaLoss", epochs=2, embedding_dim=8)
    monkeypatch.setattr(pretrained, "CONFIGS", {"tiny": config})
    pretrained.load.cache_clear()
    pretrained.train_all(["tiny"])
    yield pretrained.path("tiny")
    pretrained.load.cache_clear()


def test_what_is_kept_predicts_as_what_was_trained(kept, capsys):
    loaded, data = pretrained.load("tiny"), runs.load("digits")
    model, record = runs.execute(pretrained.CONFIGS["tiny"])
    assert not loaded.network.training and not loaded.head.training
    x = train.embed(model, data, data.test)
    torch.testing.assert_close(loaded.embed(data.test.images), x, atol=0.05, rtol=0.05)  # half precision
    predicted = loaded.predict(data.test.images)
    assert torch.equal(predicted, loaded.predict(data.test.images[:, 0]))
    accuracy = (predicted == data.test.labels).double().mean().item()
    assert accuracy == pytest.approx(record["metrics"]["test_accuracy"], abs=0.01) and accuracy > 0.5
    said = loaded.information
    assert runs.Config(**said["config"]) == pretrained.CONFIGS["tiny"] and said["commit"] == records.commit()
    assert said["test_accuracy"] == record["metrics"]["test_accuracy"] and said["classes"] == data.classes
    assert kept.stat().st_size < 500_000


def test_a_wrong_name_is_one_line():
    with pytest.raises(ValueError, match=r"^unknown weights 'mnist': choose one of mnist_softmax, mnist_arcface, "):
        pretrained.load("mnist")
    with pytest.raises(ValueError, match=r"^unknown weights 'x': choose one of"):
        pretrained.train_all(["x"])


def rewritten(path, change):
    """The file with its weights and what it says changed."""
    with pretrained.safe_open(path, framework="pt") as file:
        said = dict(file.metadata())
    weights = load_file(path)
    change(weights, said)
    save_file(weights, path, said)


def weights(change):
    return lambda path: rewritten(path, lambda tensors, said: change(tensors))


def information(**changes):
    return lambda path: rewritten(path, lambda tensors, said: said.update(changes))


DAMAGE = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "text": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
    "says nothing": lambda path: save_file(load_file(path), path),
    "a weight less": weights(lambda tensors: tensors.pop("head.W")),
    "a weight more": weights(lambda tensors: tensors.update({"head.b": torch.ones(1)})),
    "of another shape": weights(lambda tensors: tensors.update({"head.W": torch.ones(3, 8)})),
    "another loss": information(config=json.dumps({"data": "digits", "head": "Arc"})),
    "no configuration": information(config="7"),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


def test_a_damaged_file_is_one_line(kept):
    whole = kept.read_bytes()
    for case, damage in DAMAGE.items():
        damage(kept)
        pretrained.load.cache_clear()
        with pytest.raises(OSError, match=r"tiny\.safetensors is (missing|damaged or of another network \()") as error:
            pretrained.load("tiny")
        assert "python -m studies.pretrained" in str(error.value) and "\n" not in str(error.value), case
        if kept.is_dir():
            kept.rmdir()
        kept.write_bytes(whole)


@pytest.mark.parametrize(
    "images",
    [torch.zeros(2, 1, 8, 8), torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(8, 8, dtype=torch.uint8)],
)
def test_images_of_another_kind_are_one_line(kept, images):
    with pytest.raises(ValueError, match=r"^images must be torch\.uint8 of 1x8x8 .*convert them$"):
        pretrained.load("tiny").predict(images)


@pytest.mark.parametrize("name", pretrained.CONFIGS)
def test_the_weights_of_the_repository(name):
    if not pretrained.path(name).exists():
        pytest.skip("not made yet: python -m studies.pretrained")
    pretrained.load.cache_clear()
    loaded = pretrained.load(name)
    assert runs.Config(**loaded.information["config"]) == pretrained.CONFIGS[name]
    assert loaded.information["test_accuracy"] > 0.98 and not loaded.information["commit"].endswith("+")
    assert loaded.predict(torch.zeros(2, 28, 28, dtype=torch.uint8)).shape == (2,)
