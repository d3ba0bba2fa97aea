"""A whole grid on this machine: etcds, control planes and agents as processes, devices simulated below NVML."""
