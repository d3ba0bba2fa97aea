"""The daemon on each host."""
