"""What may be wrong with a host: one check a file, each behind ``check.Check``."""
