"""Fixtures that several tests share are plugins under ``tests/fixtures``."""

from hypothesis import settings

pytest_plugins = ["tests.fixtures.etcd"]

settings.register_profile("untimed", deadline=None)  # a loaded machine fails no test
settings.load_profile("untimed")
