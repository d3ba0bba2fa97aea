"""The shared kernel: records, identifiers, ports, the fault catalogue, configuration and the typed client."""
