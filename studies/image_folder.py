"""Your own images: a folder with one subfolder per class."""

import re
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision import datasets
from torchvision.transforms import v2

from lib.data import Data, Split, split_all


def find(name: str | Path) -> tuple[Path, int] | None:
    """The folder that a name means and the side of its images in pixels: 32, or 48 for "folder@48". None if there is
    no such folder."""
    if Path(name).is_dir():
        return Path(name), 32
    end = re.fullmatch(r"(.+)@(\d+)", str(name))
    return (Path(end[1]), int(end[2])) if end and Path(end[1]).is_dir() else None


def load(path: Path, size: int) -> Data:
    """The images under path, each class in its subfolder, as colour images of size x size pixels.

    Raises ValueError for unusable images; each message names the cure.
    """
    if size < 8:
        raise ValueError(f"{path}@{size}: images of {size} pixels are too small, choose 8 or more")
    try:
        folder = datasets.ImageFolder(path)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: {str(error).splitlines()[0]} Expected one subfolder with images per class") from None
    if len(folder.classes) < 2:
        raise ValueError(f"{path} holds one class only ({folder.classes[0]}): add a subfolder per class")
    if {name.lower() for name in folder.classes} <= {"train", "training", "val", "valid", "validation", "test"}:
        raise ValueError(
            f"{path} is split into {', '.join(folder.classes)}, not into classes: name the folder whose subfolders "
            "are the classes; the splits are made here"
        )
    images, labels, broken = [], [], []
    for file, label in folder.samples:
        try:
            images.append(_picture(file, size))
            labels.append(label)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # all that Pillow raises
            broken.append(file)
    if broken:
        raise ValueError(
            f"{path}: {len(broken)} unreadable images (damaged, or more than 8 bits per channel), the first is "
            f"{broken[0]}: replace or delete them"
        )
    rarest = torch.bincount(torch.tensor(labels)).min().item()
    if rarest < 5:
        raise ValueError(f"{path}: every class needs at least 5 images for its three splits, the rarest has {rarest}")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))  # the first n are a fair sample
    everything = Split(torch.stack(images), torch.tensor(labels))[order]
    return split_all(path.name, everything, folder.classes, crop_padding=2)


def _picture(file: str, size: int) -> Tensor:
    """An image file as uint8 (3, size, size), turned as its camera notes."""
    with Image.open(file) as image:
        if image.mode[0] in "IF":
            raise ValueError("Pillow clips pixels of 16 bits and more")
        picture = ImageOps.exif_transpose(image).convert("RGBA").convert("RGB")  # a palette may hold transparency
    return v2.functional.resize(v2.functional.pil_to_tensor(picture), [size, size], antialias=True)
