"""Device backends: NVML, the host itself, replayed traces."""
