"""Documents shaped like published service level agreements, to start a contract from."""

SHIPPED = ("alibaba-cloud", "aws", "azure", "google-cloud")
