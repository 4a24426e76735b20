"""Settings that every test shares."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "tnlib", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tnlib")
torch.set_num_threads(2)


@pytest.fixture(params=["numpy", "torch"])
def to_library(request):
    """Turn a NumPy array into an array of the library under test."""
    return np.asarray if request.param == "numpy" else torch.from_numpy
