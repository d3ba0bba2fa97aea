"""Pure decisions about ownership, placement and migration."""
