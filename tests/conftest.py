"""Fixtures that several tests share are plugins under ``tests/fixtures``."""

import os

from hypothesis import settings

pytest_plugins = ["tests.fixtures.etcd", "tests.fixtures.slurm"]

# A loaded machine fails no test, and the same commit passes or fails every time: new examples are looked for by
# `make explore`, not by whoever builds.
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))
