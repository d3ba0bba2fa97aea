"""Service levels: exact arithmetic on uptime, contracts, objectives and alerts. Pure, and usable without a grid."""
