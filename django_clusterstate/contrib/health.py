"""A check for django-health-check 4 or newer: whether this host's node serves."""

import dataclasses

from health_check.base import HealthCheck
from health_check.exceptions import ServiceUnavailable

from .. import cluster


@dataclasses.dataclass
class ClusterNode(HealthCheck):
    """Fails while this host's node doesn't answer, is joining or is leaving. Ignores all other nodes."""

    async def run(self) -> None:
        """Raises `ServiceUnavailable` with the reason."""
        problem = await cluster.aproblem()
        if problem:
            raise ServiceUnavailable(problem)
