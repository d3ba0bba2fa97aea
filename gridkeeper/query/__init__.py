"""``gridkeeper query``: the tables there are, which SQL is allowed, and where it runs."""
