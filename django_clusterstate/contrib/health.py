"""A check for django-health-check, from version 4 on: this host's node serves."""

import dataclasses

from health_check.base import HealthCheck
from health_check.exceptions import ServiceUnavailable

from .. import cluster


@dataclasses.dataclass
class ClusterNode(HealthCheck):
    """Fails while this host's node doesn't answer, joins or leaves, whatever the other nodes do."""

    async def run(self) -> None:
        """Raises `ServiceUnavailable`, which says why."""
        problem = await cluster.aproblem()
        if problem:
            raise ServiceUnavailable(problem)
