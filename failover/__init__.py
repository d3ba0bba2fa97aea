"""Moving jobs."""
