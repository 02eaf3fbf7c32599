"""What every test shares: hypothesis draws the same examples in each run and on each machine, and no clock decides."""

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.interpreter import gpu as gpu
from tests.interpreter import interpreted as interpreted

settings.register_profile(
    "optimizers",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("optimizers")

if "PYTEST_XDIST_WORKER" in os.environ:
    # The cores are shared with other workers. What is about threads sets their number itself.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_random_numbers_in_any_order():
    torch.manual_seed(0)
