"""Rate limits that hold across the cluster: each key is counted in one place, its owner's memory.

Nothing here raises for a failure of the cluster: the policy `on_unavailable` then answers, and the decision says so.
"""

from .hits import ahit, apeek, arefund, areset, hit, peek, refund, reset
from .limits import ALGORITHMS, MAX_COST, Decision, Limit, Ratelimited, routing_key, split_key

__all__ = [
    "ALGORITHMS",
    "MAX_COST",
    "Decision",
    "Limit",
    "Ratelimited",
    "ahit",
    "apeek",
    "arefund",
    "areset",
    "hit",
    "peek",
    "refund",
    "reset",
    "routing_key",
    "split_key",
]
