"""Your own images: a folder with one subfolder per class, and a receipt of what was used of it."""

import contextlib
import hashlib
import os
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import v2

from lib.data import Data, Split, split_all

SPLITS = {"train", "training", "val", "valid", "validation", "dev", "eval", "test", "testing"}
IMAGES = {".jpg", ".jpeg", ".jfif", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif"}
PHOTOGRAPHS = {
    ".heic", ".heif", ".avif", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".svg", ".psd", ".eps", ".jp2", ".j2k",
    ".jxl", ".jpe", ".tga", ".pcx", ".dds", ".ico", ".exr", ".hdr", ".dcm", ".xcf",
}  # fmt: skip
SYSTEM = re.compile(
    r"[.@_]{1,2}(?!\w+_$).*|__\w+__|~.*|.*~|thumbs\.db|desktop\.ini|\$recycle\.bin|system volume information|"
    r"lost\+found", re.I,
)  # fmt: skip
DEEP = "more than 8 bits per channel"
LARGEST = 1024  # pixels of a side
FILES = 200_000  # above that a folder is no data set of this kind


@dataclass
class Receipt:
    """used: images by class. left_out: (cause, number, the first of them). sizes: smallest and largest width x height.
    duplicates: (a file, the one it repeats). content: a hash of the pixels of all images that are used, and of their
    classes."""

    folder: str
    used: dict[str, int] = field(default_factory=dict)
    left_out: list[tuple[str, int, str]] = field(default_factory=list)
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    sizes: tuple[str, str] = ("", "")
    content: str = ""

    def __str__(self) -> str:
        lines = [f"{self.folder}: {sum(self.used.values())} images of {len(self.used)} classes"]
        lines[0] += f", {self.sizes[0]} to {self.sizes[1]} pixels" if self.sizes[0] else ""
        lines += [f"  {name}: {count} images" for name, count in self.used.items()]
        lines += [f"  left out, {cause}: {count} (the first is {first})" for cause, count, first in self.left_out]
        return "\n".join(lines)

    def record(self) -> dict:
        """What a run's record keeps of it: of the duplicates their number is among left_out."""
        return {key: value for key, value in vars(self).items() if key != "duplicates"}


RECEIPTS: dict[tuple[str, int], Receipt] = {}  # of the folders that this process has loaded, by path and size


def for_markdown(name: str) -> str:
    """The name of a class or folder as Markdown that shows it as it is."""
    return re.sub(r"([\\`*_{}\[\]()<>#+.!$@|~^&-])", r"\\\1", " ".join(name.split()))


def for_figure(name: str, longest: int = 24) -> str:
    """The same for a figure: matplotlib reads mathematics between dollars and hides a legend's entry of _name."""
    name = " ".join(name.split())
    name = name if len(name) <= longest else f"{name[: longest - 1]}…"
    return re.sub(r"^_", "\u200a_", name.replace("$", r"\$"))


def shown(name: str) -> str:
    """The name of a file or folder in one line that can be printed: on Linux it may hold any bytes."""
    return " ".join(unicodedata.normalize("NFC", os.fsencode(name).decode(errors="replace")).split())


def locate(name: str | Path) -> tuple[Path, int] | None:
    """The folder that a name means and the side of its images in pixels: 32, or 48 for "folder@48". None if there is
    no such folder."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path, 32
    end = re.fullmatch(r"(.+)@(\d{1,9})", str(path))
    return (Path(end[1]), int(end[2])) if end and Path(end[1]).is_dir() else None


def load(path: Path, size: int, skip_damaged: bool = False) -> Data:
    """The images under path, each class in its subfolder, as colour images of size x size pixels; a receipt is
    printed. Raises ValueError for unusable images; each message names the cure."""
    data, receipt = read(path, size, skip_damaged)
    print(receipt)
    RECEIPTS[str(path), size] = receipt  # for the records of the runs
    return data


def receipt(name: str) -> dict | None:
    """What the records of runs on the folder of that name keep of its receipt; None if none was loaded."""
    folder = locate(name)
    known = RECEIPTS.get((str(folder[0]), folder[1])) if folder else None
    return known.record() if known else None


def read(path: Path, size: int, skip_damaged: bool = False) -> tuple[Data, Receipt]:
    """As ``load``, with the receipt. skip_damaged: leave out and count what cannot be read, in place of ValueError.

    Entries of the system and hidden ones are no data; the first of equal pictures is used, so that no picture is in
    two splits; transparent ones lie on white, of a moving one the first frame counts.
    """
    if not 8 <= size <= LARGEST:
        kind = "small" if size < 8 else "large"
        raise ValueError(f"{path}@{size}: images of {size} pixels are too {kind}, choose 8 to {LARGEST}")
    classes = _classes(path)
    left: dict[str, list[str]] = {}
    images, labels, sizes = [], [], []
    broken: dict[str, list[str]] = {}
    seen: dict[bytes, str] = {}
    receipt = Receipt(path.resolve().name)
    _leave_beside(path, left)
    folders, classes = classes, [shown(name) for name in classes]
    for label, name in enumerate(folders):
        for file in _files(path / name, path, left):
            short = shown(str(file.relative_to(path)))
            try:
                with Image.open(file) as image:
                    shape, frames = image.size, getattr(image, "n_frames", 1)
                picture, content = _picture(file, size), _content(file)
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # all that Pillow raises
                broken.setdefault(_cause(error), []).append(short)
                continue
            sizes.append(shape)
            if frames > 1:
                left.setdefault("the frames behind the first of a picture", []).append(short)
            mark = hashlib.sha1(content).digest()
            if mark in seen:
                receipt.duplicates.append((short, seen[mark]))
                continue
            seen[mark] = short
            images.append(picture)
            labels.append(label)
    used = Counter(labels)
    receipt.used = {name: used[label] for label, name in enumerate(classes)}
    _refuse_two_classes(path, receipt.duplicates)
    if broken and not skip_damaged:
        counts = "; ".join(f"{cause}: {len(files)}" for cause, files in broken.items())
        raise ValueError(
            f"{path}: {sum(map(len, broken.values()))} unreadable images ({counts}), the first is "
            f"{path / next(iter(broken.values()))[0]}: replace or delete them, or skip them by "
            "image_folder.read(..., skip_damaged=True)"
        )
    causes = {**left, **broken, "the same picture again": [a for a, _ in receipt.duplicates]}
    receipt.left_out = [(cause, len(files), files[0]) for cause, files in causes.items() if files]
    if sizes:
        receipt.sizes = tuple("x".join(map(str, pick(sizes, key=lambda s: s[0] * s[1]))) for pick in (min, max))
    rarest = min(receipt.used, key=receipt.used.get)
    if receipt.used[rarest] < 4:
        why = "; ".join(f"left out, {cause}: {count}" for cause, count, _ in receipt.left_out)
        raise ValueError(
            f"{path}: every class needs at least 4 images, two to train on, one for validation and one for the test; "
            f"the rarest has {receipt.used[rarest]} ({rarest}{'; ' * bool(why)}{why}): add images, or take "
            "the class away"
        )
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))  # the first n are a fair sample
    everything = Split(torch.stack(images), torch.tensor(labels))[order]
    marks = b"".join(sorted(label.to_bytes(4, "big") + mark for mark, label in zip(seen, labels, strict=True)))
    receipt.content = hashlib.sha256(marks).hexdigest()[:16]
    return _split(path.resolve().name, everything, classes), receipt


def _split(name: str, everything: Split, classes: list[str]) -> Data:
    """A fifth for test, a tenth for validation, and of every class an image at least in each."""
    with contextlib.suppress(ValueError):  # a rare class may be too small for that
        data = split_all(name, everything, classes, crop_padding=2)
        if all(split.labels.bincount(minlength=len(classes)).min() for split in data.splits().values()):
            return data
    parts: dict[str, list[Tensor]] = {"test": [], "val": [], "train": []}
    for label in range(len(classes)):
        own = (everything.labels == label).nonzero()[:, 0]
        sizes = [max(1, len(own) // 5), max(1, len(own) // 10)]
        for part, rows in zip(parts.values(), own.split([*sizes, len(own) - sum(sizes)]), strict=True):
            part.append(rows)
    splits = {key: everything[torch.cat(rows).sort().values] for key, rows in parts.items()}
    pixels = splits["train"].images.double() / 255
    mean, std = pixels.mean(dim=(0, 2, 3)).tolist(), pixels.std(dim=(0, 2, 3)).clamp_min(1 / 255).tolist()
    return Data(name, **splits, classes=classes, mean=tuple(mean), std=tuple(std), crop_padding=2)


def _classes(path: Path) -> list[str]:
    """The subfolders that are classes. Raises ValueError if these are none, or splits."""
    if not path.is_dir():
        raise ValueError(f"{path} is no folder: name one with a subfolder of images per class")
    names = sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and not SYSTEM.fullmatch(entry.name))
    if path.resolve() == Path(path.resolve().anchor) or (path / "pyproject.toml").exists():
        raise ValueError(f"{path} is no folder of images: name one with a subfolder per class")
    if not names:
        beside = sum(Path(entry.name).suffix.lower() in IMAGES | PHOTOGRAPHS for entry in os.scandir(path))
        sort = f": sort its {beside} images into them" if beside else ""
        raise ValueError(f"{path}: it holds no subfolder. Expected one subfolder with images per class{sort}")
    split = [name for name in names if set(re.split(r"[^a-z]+", name.lower())) & SPLITS]
    if split and (len(split) > 1 or set(split[0].lower().split()) <= {"train", "training"}):
        raise ValueError(
            f"{path} is split into {', '.join(names)}, not into classes: name the folder whose subfolders "
            "are the classes; the splits are made here"
        )
    if len(names) < 2:
        inner = path / names[0]
        if any(entry.is_dir() and not SYSTEM.fullmatch(entry.name) for entry in os.scandir(inner)):
            raise ValueError(f"{path} holds one folder only: if its subfolders are the classes, name it, {inner}")
        raise ValueError(f"{path} holds one class only ({names[0]}): add a subfolder per class")
    return names


def _leave_beside(root: Path, left: dict[str, list[str]]) -> None:
    """Images that lie beside the folders of the classes go to left."""
    for entry in sorted(os.scandir(root), key=lambda entry: entry.name):
        picture = Path(entry.name).suffix.lower() in IMAGES | PHOTOGRAPHS
        if picture and entry.is_file() and not SYSTEM.fullmatch(entry.name):
            left.setdefault("in no folder of a class", []).append(shown(entry.name))


def _files(folder: Path, root: Path, left: dict[str, list[str]]) -> list[Path]:
    """The image files below folder, each once; what else lies there goes to left, by cause."""
    found, real, count = [], {root.resolve()}, 0

    def leave(cause, path):
        left.setdefault(cause, []).append(shown(str(path.relative_to(root))))

    def unreadable(error):
        leave(f"a folder that cannot be read ({error.strerror})", Path(error.filename))

    for place, folders, files in os.walk(folder, followlinks=True, onerror=unreadable):
        here = Path(place)
        if here.resolve() in real:  # a link back, or to a folder that was read
            leave("a link to what is read already", here)
            folders[:] = []
            continue
        real.add(here.resolve())
        for name in [name for name in folders if SYSTEM.fullmatch(name)]:
            leave("hidden or the system's", here / name)
        folders[:] = sorted(name for name in folders if not SYSTEM.fullmatch(name))
        for name in sorted(files):
            path, suffix = here / name, Path(name).suffix.lower()
            count += 1
            if count > FILES:
                raise ValueError(f"{folder} holds more than {FILES:,} files: name a smaller folder of images")
            if SYSTEM.fullmatch(name):
                leave("hidden or the system's", path)
            elif suffix in PHOTOGRAPHS:
                leave(f"{suffix[1:].upper()}, which cannot be read here: save them as JPEG", path)
            elif suffix not in IMAGES:
                leave("no image", path)
            elif path.is_symlink() and path.resolve() in real:
                leave("a link to what is read already", path)
            elif not path.is_file():  # reading a pipe would wait for ever
                leave("a link to nothing, a pipe or a device", path)
            else:
                real.add(path.resolve())
                found.append(path)
    if not found:
        causes = "; ".join(f"{cause}: {len(files)}" for cause, files in left.items())
        raise ValueError(
            f"{root}: the class {folder.name} holds no image ({'left out, ' * bool(causes)}{causes or 'it is empty'}). "
            "Expected one subfolder with images per class"
        )
    return found


def _cause(error: Exception) -> str:
    """Why a picture is not read."""
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6} million pixels"
    if isinstance(error, PermissionError):
        return "not to be read by you"
    return str(error) if str(error) == DEEP else "damaged"


def _content(file: Path) -> bytes:
    """The pixels of an image file as they are seen, whatever its format and notes: equal for copies."""
    with Image.open(file) as image:
        return repr(image.size).encode() + _on_white(image.convert("RGBA")).tobytes()


def _on_white(picture: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def _refuse_two_classes(path: Path, duplicates: list[tuple[str, str]]) -> None:
    for copy, first in duplicates:
        if Path(copy).parts[0] != Path(first).parts[0]:
            raise ValueError(f"{path}: the same picture is in two classes, {first} and {copy}: delete one of them")


def _picture(file: str | Path, size: int) -> Tensor:
    """An image file as uint8 (3, size, size), turned as its camera notes, what is transparent white."""
    with Image.open(file) as image:
        if image.mode[0] in "IF":
            raise ValueError(DEEP)  # which Pillow clips
        picture = ImageOps.exif_transpose(image).convert("RGBA")  # a palette may hold transparency
    pixels = v2.functional.pil_to_tensor(_on_white(picture))
    return v2.functional.resize(pixels, [size, size], antialias=True)
