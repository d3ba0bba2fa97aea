"""Fixtures that several tests share are plugins under ``tests/fixtures``."""

pytest_plugins = ["tests.fixtures.etcd"]
