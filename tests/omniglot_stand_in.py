"""A small Omniglot of random strokes, in the same folders as the real one."""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from lib.sets import omniglot

BACKGROUND = {"Alpha": 5, "Beta": 4, "Delta": 3, "Gamma": 5}  # characters of each alphabet
EVALUATION = {"Angelic": 20, "Zeta": 3}
RUNS, ITEMS = 2, 4  # one-shot runs, and characters of each


def strokes(character: int, drawing: int) -> Image.Image:
    """Three lines that the character fixes, moved a little by each drawing; black on white."""
    points = np.random.default_rng(character).integers(15, 90, (3, 4))
    points = points + np.random.default_rng((character, drawing)).integers(-4, 5, (3, 4))
    image = Image.new("1", (105, 105), 1)
    for line in points:
        ImageDraw.Draw(image).line(line.tolist(), fill=0, width=3)
    return image


def make(root: Path) -> dict[str, tuple]:
    """Write it to root/omniglot-py; returns what ``omniglot.FOLDERS`` has to hold for it."""
    home, number = root / "omniglot-py", 0
    for folder, alphabets in (("images_background", BACKGROUND), ("images_evaluation", EVALUATION)):
        for alphabet, characters in alphabets.items():
            for c in range(1, characters + 1):
                number += 1
                path = home / folder / alphabet / f"character{c:02}"
                path.mkdir(parents=True)
                for drawing in range(1, 21):
                    strokes(number, drawing).save(path / f"{number:04}_{drawing:02}.png")
    for run in range(1, RUNS + 1):
        path = home / "one_shot_runs" / f"run{run:02}"
        answers = np.random.default_rng(run).permutation(ITEMS) + 1
        lines = []
        for part in ("test", "training"):
            (path / part).mkdir(parents=True)
        for item, answer in enumerate(answers, 1):
            strokes(100 * run + answer, 50).save(path / "test" / f"item{item:02}.png")
            strokes(100 * run + item, 60).save(path / "training" / f"class{item:02}.png")
            lines.append(f"run{run:02}/test/item{item:02}.png run{run:02}/training/class{answer:02}.png")
        (path / "class_labels.txt").write_text("\n".join(lines) + "\n")
    return {folder: described(home / folder, *known) for folder, known in omniglot.FOLDERS.items()}


def described(path: Path, archive: str, *_) -> tuple:
    """The entry of ``omniglot.FOLDERS`` for a folder as it is."""
    ink = np.stack([omniglot._ink(file) for file in sorted(path.rglob("*.png"), key=lambda file: file.as_posix())])
    return archive, len(ink), hashlib.md5(omniglot.downsample(ink).numpy().tobytes()).hexdigest()
