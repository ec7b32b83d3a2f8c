"""Trained weights of the networks whose embeddings the notebooks show: a network and its head, ready in a second.

    python -m studies.pretrained [NAME ...]    train them again and write results/weights/

Each takes about half a minute. A file holds the weights in half precision and says what made them: configuration,
commit and test accuracy.
"""

import argparse
import dataclasses
import functools
import json
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lib import data as datasets
from lib import heads, models, paths
from studies import machine, records, runs

# the first seeds of notebook 03's main runs
CONFIGS = {f"mnist_{head.lower()}": runs.recipe("mnist", head) for head in ("Softmax", "ArcFace", "AdaLoss")}


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A trained network and its head in eval mode, and what made them.

    information: config, commit, test_accuracy, classes, mean and std of the training images' pixels, and their shape.
    """

    network: torch.nn.Module
    head: torch.nn.Module
    information: dict

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """Embeddings (N, d) of uint8 images (N, channels, H, W), grey ones also as (N, H, W). Raises ValueError for
        images of another kind."""
        images = images[:, None] if images.ndim == 3 else images
        if images.dtype != torch.uint8 or list(images.shape[1:]) != self.information["shape"]:
            wanted = "x".join(map(str, self.information["shape"]))
            got = f"{images.dtype} of {'x'.join(map(str, images.shape[1:]))}"
            raise ValueError(
                f"images must be torch.uint8 of {wanted} (channels, height, width), got {got}: convert them"
            )
        mean, std = (torch.tensor(self.information[key])[:, None, None] for key in ("mean", "std"))
        return self.network((images / 255 - mean) / std)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """The most likely class (N,) of every image, without a label and so without a margin."""
        return self.head(self.embed(images)).argmax(1)


def path(name: str) -> Path:
    return paths.PROJECT / "results" / "weights" / f"{name}.safetensors"


@functools.cache
def load(name: str) -> Pretrained:
    """The network and head of that name in ``CONFIGS``. Raises ValueError for an unknown name, and OSError for a file
    that is missing, damaged or of another network; each message names the cure."""
    if name not in CONFIGS:
        raise ValueError(f"unknown weights {name!r}: choose one of {', '.join(CONFIGS)}")
    cure = "restore it, or make it anew by `python -m studies.pretrained`"
    try:
        with safe_open(path(name), framework="pt") as file:
            information = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
            state = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
        config = runs.Config(**information["config"])
        channels, *_ = information["shape"]
        network = models.NETWORKS[config.network](channels, config.embedding_dim)
        head = heads.make(config.head, len(information["classes"]), config.embedding_dim, **dict(config.constants))
        parts = {"network": network, "head": head}
        for part, module in parts.items():
            known = {key for key in module.state_dict() if not key.endswith("_extra_state")}
            own = {key.removeprefix(f"{part}."): value for key, value in state.items() if key.startswith(f"{part}.")}
            if own.keys() != known:
                raise ValueError(f"it lacks or adds {sorted(own.keys() ^ known)[0]}")
            module.load_state_dict(own, strict=False)
            module.eval()
    except FileNotFoundError:
        raise OSError(f"{path(name)} is missing: {cure}") from None
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, AttributeError, OSError) as error:
        raise OSError(f"{path(name)} is damaged or of another network ({records.cause(error)}): {cure}") from None
    return Pretrained(network, head, information)


def packed(config: runs.Config, data: datasets.Data, model: models.Classifier, accuracy: float) -> bytes:
    """The content of a file for ``load``."""
    state = {
        key: (runs.halved(value) if value.is_floating_point() else value).cpu().contiguous()
        for key, value in model.state_dict().items()
        if isinstance(value, Tensor)
    }
    information = {
        "config": dataclasses.asdict(config), "commit": records.commit(), "test_accuracy": accuracy,
        "classes": data.classes, "mean": data.mean, "std": data.std, "shape": list(data.train.images.shape[1:]),
    }  # fmt: skip
    return save(state, {key: json.dumps(value) for key, value in information.items()})


def train_all(names: list[str]) -> None:
    """Train these and write their files. Raises ValueError where code is not committed: the weights name a commit."""
    for name in names:
        if name not in CONFIGS:
            raise ValueError(f"unknown weights {name!r}: choose one of {', '.join(CONFIGS)}")
    records.check_committed()
    for name in names:
        model, data, record = runs.live(CONFIGS[name])
        paths.write(path(name), packed(CONFIGS[name], data, model, record["metrics"]["test_accuracy"]))
        load.cache_clear()
        accuracy = (load(name).predict(data.test.images.cpu()) == data.test.labels.cpu()).double().mean().item()
        print(
            f"wrote {path(name).name}: test accuracy {record['metrics']['test_accuracy']:.2%}, as stored {accuracy:.2%}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m studies.pretrained", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.error = lambda message: sys.exit(f"error: {message}")  # in one line
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(CONFIGS)}; none for all of them")
    try:
        train_all(parser.parse_args().names or list(CONFIGS))
    except Exception as error:
        if said := machine.explained(error):
            sys.exit(f"error: {said}")
        raise


if __name__ == "__main__":
    main()
