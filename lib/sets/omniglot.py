"""Omniglot's files (Lake et al. 2015, Science 350): 1,623 characters of 50 alphabets, each drawn once by 20 people.

They lie as torchvision.datasets.Omniglot lays them out, in omniglot-py/<folder>/<alphabet>/<character>/, beside the
official one-shot runs, which that class does not know, in omniglot-py/one_shot_runs/run01 to run20.
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from torch import Tensor
from torchvision.datasets import Omniglot
from torchvision.datasets.utils import download_and_extract_archive

SIDE, SIZE = 105, 28  # pixels of a side, in a file and as read
# of each folder: its archive, the number of its images, the MD5 of all their pixels as ``read_images`` gives them
FOLDERS = {
    "images_background": ("images_background.zip", 19280, "9b0e0433cec7ee694db7df4deaab7b50"),
    "images_evaluation": ("images_evaluation.zip", 13180, "24c97e5041a9eec608dde3778c5a98e6"),
    "one_shot_runs": ("one-shot-classification/all_runs.zip", 800, "48ad923158001c4da1294b9134cbb95f"),
}
ZIPS_MD5 = {**Omniglot.zips_md5, "one_shot_runs": "e8996daecdf12afeeb4a53a179f06b19"}


Labelled = tuple[Tensor, Tensor]  # images (N, 1, 28, 28) and labels (N,)


def splits(root: Path) -> tuple[tuple[Labelled, Labelled, Labelled], list[str], tuple[str, ...]]:
    """Training, validation and test images with their labels, the names of the classes, those of the test's.

    The background alphabets are for training and, their drawers 17 to 20, for validation; the evaluation alphabets are
    the test's, labelled behind the others. A class is called like Greek/character05.
    """
    parts = [read_images(root, folder) for folder in ("images_background", "images_evaluation")]
    background, test = ([name.rpartition("/")[0] for name in names] for _, names in parts)
    classes, unseen = sorted(set(background)), sorted(set(test))
    number = {name: c for c, name in enumerate(classes + unseen)}
    known, other = (torch.tensor([number[name] for name in names]) for names in (background, test))
    held = torch.tensor([int(name[-6:-4]) > 16 for name in parts[0][1]])  # 0398_17.png is by drawer 17
    (images, _), (test_images, _) = parts
    train, val = (images[~held], known[~held]), (images[held], known[held])
    return (train, val, (test_images, other)), classes, tuple(unseen)


def read_images(root: Path, folder: str) -> tuple[Tensor, list[str]]:
    """All images of a folder, uint8 (N, 1, 28, 28) with white ink on black, and their paths in it, in ascending order.

    A folder that is not there is downloaded to root. Raises OSError for one that is damaged or incomplete.
    """
    path, (archive, N, md5) = root / Omniglot.folder / folder, FOLDERS[folder]
    try:
        if len(names := _names(path)) != N:
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(root / ".lock"):  # another process may be unpacking it
                if not path.is_dir():
                    url = f"{Omniglot.download_url_prefix}/{archive}"
                    target = path if folder == "one_shot_runs" else path.parent
                    download_and_extract_archive(url, path.parent, target, f"{folder}.zip", ZIPS_MD5[folder])
                names = _names(path)
        if len(names) != N:
            raise OSError(f"it holds {len(names)} of {N} images")
        parts = (names[i : i + 500] for i in range(0, N, 500))  # all at once in fp32 would be 850 MB
        images = torch.cat([downsample(np.stack([_ink(path / name) for name in part])) for part in parts])
        if hashlib.md5(images.numpy().tobytes()).hexdigest() != md5:
            raise OSError("the MD5 of its pixels is wrong")
    except Exception as error:  # torchvision raises URLError, BadZipFile, ... and PIL SyntaxError, ValueError, ...
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise OSError(
            f"{path}/ could not be read or downloaded ({cause}): connect to the network, "
            "or delete that folder if it is there, and copy it from another machine"
        ) from error
    return images, names


def _names(path: Path) -> list[str]:
    return sorted(file.relative_to(path).as_posix() for file in path.rglob("*.png"))


def _ink(file: Path) -> np.ndarray:
    """Where a drawing (105, 105), black on white, has ink."""
    try:
        with Image.open(file) as image:
            ink = ~np.asarray(image.convert("1"))
    except Exception as error:
        raise OSError(f"{file.name} in {file.parent.name}/ is no whole PNG file") from error
    if ink.shape != (SIDE, SIDE):
        raise OSError(f"{file.name} in {file.parent.name}/ has {ink.shape[1]} x {ink.shape[0]} pixels")
    return ink


def downsample(ink: np.ndarray) -> Tensor:
    """Drawings (N, 105, 105), 1 where there is ink, as uint8 (N, 1, 28, 28): 255 times the share of ink in each box of
    3.75 x 3.75 pixels. That is 15 x 15 sixteenths of a pixel: whole numbers are added, alike on every machine."""
    edges = np.arange(SIZE + 1) * 15  # of the boxes, in quarters of a pixel
    quarters = np.arange(SIDE) * 4
    overlap = np.minimum(edges[1:, None], quarters + 4) - np.maximum(edges[:-1, None], quarters)
    weights = torch.from_numpy(overlap.clip(0)).float()  # (28, 105)
    counts = weights @ torch.from_numpy(ink).float() @ weights.T  # of 225
    return (counts * 255 / 225).round().to(torch.uint8)[:, None]


def one_shot_runs(root: Path) -> tuple[Tensor, Tensor, Tensor]:
    """The official one-shot runs: of each the images of its characters, one a character, uint8 (20, 20, 1, 28, 28), its
    test images, of the same shape, and the number of the character that each of these shows, (20, 20).

    The characters of a run are of one evaluation alphabet. Raises OSError as ``read_images`` does.
    """
    images, names = read_images(root, "one_shot_runs")
    runs = sorted({name.split("/")[0] for name in names})
    tests, characters = images.view(len(runs), 2, -1, *images.shape[1:]).unbind(1)  # paths: run01/test, run01/training
    answers = []
    for run in runs:
        file = root / Omniglot.folder / "one_shot_runs" / run / "class_labels.txt"
        try:  # lines like "run01/test/item01.png run01/training/class08.png"
            lines = sorted(file.read_text(encoding="ascii").splitlines())
            answers.append([int(line.split()[1][-6:-4]) - 1 for line in lines])
            whole = sorted(answers[-1]) == list(range(tests.shape[1]))
        except (OSError, ValueError, IndexError):
            whole = False
        if not whole:
            raise OSError(f"{file} is missing or damaged: delete {file.parent.parent}/ and start again to download it")
    return characters, tests, torch.tensor(answers)
