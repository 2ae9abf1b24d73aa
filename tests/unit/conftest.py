from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# How long one example takes says more about the machine than about the code.
# The examples are the same in every run, so more of them cost time and find nothing new; HYPOTHESIS_PROFILE=deep does.
settings.register_profile(
    "unit", deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("deep", settings.get_profile("unit"), derandomize=False, max_examples=3000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "unit"))
