"""The logger of requesters."""

import logging

logger = logging.getLogger("django_clusterstate.client")
