"""Settings that every test shares."""

from __future__ import annotations

import os

import numpy as np
import pytest
import scipy.linalg  # noqa: F401  its BLAS is loaded here, to be limited below
import threadpoolctl
import torch
from hypothesis import HealthCheck, settings

# It changes what is imported after it: a plugin, to be asked for.
collect_ignore = ["perturbed.py"]

settings.register_profile(
    "tnlib",
    deadline=None,
    max_examples=int(os.environ.get("TEST_EXAMPLES", "60")),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("tnlib")

# Two threads, or one for each of several workers; `tests.machines` tries others.
THREADS = int(os.environ.get("TEST_THREADS", 1 if "PYTEST_XDIST_WORKER" in os.environ else 2))
threadpoolctl.threadpool_limits(THREADS)
torch.set_num_threads(THREADS)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Torch's random numbers are those of the test, whichever tests and fixtures went before."""
    torch.manual_seed(0)


@pytest.fixture(params=["numpy", "torch"])
def to_library(request):
    """Turn a NumPy array into an array of the library under test."""
    return np.asarray if request.param == "numpy" else torch.from_numpy
