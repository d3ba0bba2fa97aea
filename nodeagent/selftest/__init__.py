"""The built-in self-test of a device that is to go back into service: a short burn-in in a process of its own."""
