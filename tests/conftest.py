import pytest
import torch
from hypothesis import settings

from lib import data, paths
from studies import runs

# the same examples in every run; noisy machines make time limits useless
settings.register_profile("study", deadline=None, derandomize=True, max_examples=30)
settings.load_profile("study")

torch.set_num_threads(1)  # the networks here are tiny, and more threads wait for each other on busy cores


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project folder in place of the real one."""
    monkeypatch.setattr(paths, "PROJECT", tmp_path)
    for name in ("PROFILE", "RETRAIN", "RUN_LOG"):
        monkeypatch.delenv(name, raising=False)
    runs.load.cache_clear()
    yield tmp_path
    runs.load.cache_clear()


@pytest.fixture
def smoke(project, monkeypatch):
    """The same in the smoke profile."""
    monkeypatch.setenv("PROFILE", "smoke")
    return project


@pytest.fixture(scope="session")
def digits():
    return data.load("digits")
