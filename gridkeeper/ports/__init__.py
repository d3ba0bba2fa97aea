"""Ports: every way in which the system touches time, chance, disks, stores, networks, devices and processes.

Small protocols; each adapter of a port passes that port's one conformance suite, simulated ones included.
"""
