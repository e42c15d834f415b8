"""Some of `make soak`: the seed is another one each time, and is told when it fails."""

from __future__ import annotations

import os
import random

import pytest

from tests.network import Network, network
from tests.soak import soak

__all__ = ["network"]

SECONDS = 100


@pytest.mark.timeout(SECONDS + 140)
def test_random_faults_refuse_nobody_heal_in_time_and_leave_nothing(network: Network) -> None:
    seed = int(os.environ.get("SEED") or random.randrange(10**6))
    assert soak(network, SECONDS, seed).faults >= 4
