"""How a self-test ends, other than well."""


class Failed(Exception):
    """The hardware gave a wrong result; the message says which."""


class CannotTest(Exception):
    """Nothing is known: what is needed for the test is not there. The message says what, and the remedy."""
