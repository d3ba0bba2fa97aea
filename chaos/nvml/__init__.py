"""The simulated NVML: a C library with NVML's ABI, steered at run time through one mapped file."""
