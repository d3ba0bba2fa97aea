"""The typed client of the Grid API: all regions at once, with failover between the replicas of each."""

from gridkeeper.client.answers import Listing
from gridkeeper.client.changes import Alive, Change, Gone, Partial, Put, Synced
from gridkeeper.client.errors import (
    ClientError,
    Failed,
    Incomplete,
    InvalidRequest,
    NotFound,
    Refused,
    Unreachable,
)
from gridkeeper.client.grid import GridClient

__all__ = [
    "Alive",
    "Change",
    "ClientError",
    "Failed",
    "Gone",
    "GridClient",
    "Incomplete",
    "InvalidRequest",
    "Listing",
    "NotFound",
    "Partial",
    "Put",
    "Refused",
    "Synced",
    "Unreachable",
]
