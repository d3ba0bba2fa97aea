"""Programs to copy. They import nothing of Gridkeeper: its contract with a job is environment, signals and files."""
