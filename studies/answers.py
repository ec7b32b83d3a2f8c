"""Which test images a run has right, kept with its record, so that it can be asked what other test images would say."""

import base64
import math
import zlib

import numpy as np
from scipy import stats

from lib import train
from studies import runs


def with_answers(execute):
    """Like execute(run, progress), but the record also holds which test images are wrong (``pack``)."""

    def answered(run, progress: bool = False) -> tuple:
        model, record = execute(run, progress)
        if model is not None:
            data = runs.load_for(run)
            right = train.predict(model, data, data.test).argmax(1) == data.test.labels.cpu()
            record["wrong"] = pack(~right.numpy())
        return model, record

    return answered


def pack(wrong: np.ndarray) -> dict:
    """Truth values (N,), a bit each, as text for a record."""
    bits = zlib.compress(np.packbits(wrong).tobytes(), 9)
    return {"of": len(wrong), "bits": base64.b64encode(bits).decode()}


def unpack(packed: dict) -> np.ndarray:
    bits = np.frombuffer(zlib.decompress(base64.b64decode(packed["bits"])), dtype=np.uint8)
    return np.unpackbits(bits, count=packed["of"]).astype(bool)


def other_images(right: dict, reference: dict) -> dict:
    """How far the mean difference of two losses is known, for another training and for other test images too.

    right, reference: by seed, truth values (N,). Standard errors of the mean difference of their accuracies (a share,
    not points): seeds, from the differences of the seeds; images, from the mean difference on each image. low, high:
    the 95 % interval of both together (Student's t, one degree less than there are seeds). What a seed and an image
    share is in either error, so the interval is a little too wide rather than too narrow. Raises ValueError for less
    than two seeds that both have.
    """
    seeds = sorted(right.keys() & reference.keys())
    if len(seeds) < 2:
        raise ValueError(f"an interval needs two seeds that both losses have, there are {len(seeds)}")
    d = np.array([right[seed].astype(float) - reference[seed] for seed in seeds])  # (seeds, N)
    mean, (n, images) = d.mean(), d.shape
    by_seed, by_image = d.mean(1).std(ddof=1) / math.sqrt(n), d.mean(0).std(ddof=1) / math.sqrt(images)
    half = stats.t.ppf(0.975, n - 1) * math.hypot(by_seed, by_image)
    return {"mean": mean, "seeds": by_seed, "images": by_image, "low": mean - half, "high": mean + half}
