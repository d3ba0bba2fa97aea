"""The shared kernel: records, identifiers, ports, the fault catalogue, configuration and the typed client."""

__version__ = "0.1.0"
