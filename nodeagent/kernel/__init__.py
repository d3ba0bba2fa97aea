"""What the kernel log says: one file per family of drivers, each from the text of a line to what it reports."""
