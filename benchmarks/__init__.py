"""Short measurements of speed and memory. `make bench` takes them; each leaves one line in results/benchmarks.jsonl."""

import json

import numpy as np
import pandas as pd
import torch

from lib import store


def spread(values) -> dict[str, float]:
    """Median, quartiles and number of repeated measurements."""
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {"median": float(median), "low": float(low), "high": float(high), "n": len(values)}


def keep(name: str, rows: list[dict], device: torch.device, **versions: str) -> None:
    """Record one measurement, and print its rows."""
    record = {"benchmark": name, "rows": rows, **store.environment(device)}
    record["versions"].update(versions)
    store.append(store.folder("results") / "benchmarks.jsonl", store.rounded(record))
    print(f"\n{name}: {record['device']}, torch {torch.__version__}\n")
    print(pd.json_normalize(rows).to_string(index=False, float_format="{:.3g}".format), flush=True)


def recorded(name: str, *each: str) -> pd.DataFrame:
    """The rows of the newest measurement on each device, and for each value of further columns. Raises
    ValueError if there is none."""
    path = store.folder("results") / "benchmarks.jsonl"
    frames = []
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else [], 1):
        try:
            record = json.loads(line)
            if record["benchmark"] == name:
                versions = ", ".join(f"{package} {version}" for package, version in record["versions"].items())
                origin = {key: record[key] for key in ("device", "commit", "date")}
                frames.append(pd.json_normalize(record["rows"]).assign(**origin, versions=versions, line=number))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{path}, line {number} is not a measurement: move that line to another file") from None
    if not frames:
        raise ValueError(f"{path.name} holds no measurement of {name}: `make bench` takes it")
    frame = pd.concat(frames, ignore_index=True)
    newest = frame.groupby(["device", *each])["line"].transform("max")
    return frame[frame["line"] == newest].drop(columns="line").reset_index(drop=True)
