"""The command line. It alone may import the other packages, lazily."""
