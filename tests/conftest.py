"""Settings that must be in the environment before torch or Ray are imported."""

import os

from hypothesis import settings

from deployments.environment import cluster_environment

os.environ.update(cluster_environment(RAY_USAGE_STATS_ENABLED="0", RAY_DEDUP_LOGS="0", RAY_AUTH_MODE="disabled"))

# The first call of a compiled function takes as long as compiling it.
settings.register_profile("stepdial", deadline=None)
settings.load_profile("stepdial")
