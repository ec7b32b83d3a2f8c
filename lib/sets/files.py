"""The files of MNIST and CIFAR-10, as torchvision lays them out."""

import contextlib
import hashlib
from pathlib import Path

from filelock import FileLock

# the extracted files, which torchvision only checks for presence
MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


def fetch(dataset, root: Path):
    """torchvision's train and test sets; its own download, MD5-checked, only if files are missing. Raises OSError for
    damaged files and for a download that fails."""
    name = dataset.__name__
    if name == "MNIST":
        for file, md5 in MNIST_MD5.items():
            path = root / "MNIST" / "raw" / file
            if path.exists() and hashlib.md5(path.read_bytes()).hexdigest() != md5:
                raise OSError(f"{path} is damaged (its MD5 is wrong): delete it and start again to download it anew")
    with contextlib.suppress(Exception):  # what is there needs no lock, nor a folder that can be written
        return dataset(root, train=True), dataset(root, train=False)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".lock"):  # several processes may start without data
            return dataset(root, train=True, download=True), dataset(root, train=False, download=True)
    except Exception as error:  # torchvision raises URLError, RuntimeError, EOFError, ... for this
        files = {"MNIST": "MNIST/raw", "CIFAR10": "cifar-10-batches-py"}[name]
        cause = [*str(error).strip().splitlines(), type(error).__name__][0]
        raise OSError(
            f"{name} could not be read from or downloaded to {root}/ ({cause}): connect to the network, "
            f"or delete damaged files and copy {files}/ there from another machine"
        ) from error
