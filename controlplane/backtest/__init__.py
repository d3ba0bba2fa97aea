"""Replays what happened against a policy: the real decisions, on virtual time."""
