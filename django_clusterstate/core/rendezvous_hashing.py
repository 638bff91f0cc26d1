"""Rendezvous hashing: which node owns a key.

Highest random weight (HRW): Thaler & Ravishankar, "Using Name-Based Mappings to Increase Hit Rates",
IEEE/ACM Transactions on Networking 6(1), 1998. Weights: score = -w / ln(h), h uniform in (0, 1), from
Schindelhauer & Schomaker, "Weighted Distributed Hash Tables", SPAA 2005; and Mosharaf & Resch,
"Weighted Rendezvous Hashing".

Every host computes the owner for itself, so every host must get the same answer: nothing here depends on
the order of the input, on Python's own (randomized) hash, or on the machine's byte order.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import mmh3

# To compare n nodes takes n hashes, too much for each key. So keys fall into slots, whose owners are computed once and
# cached: a lookup costs one hash and one list access (0.14 us; without the cache 0.6 us at 3 nodes, 7 at 100). The
# owner depends on the slot alone, never on earlier lookups. The price is balance: a node's number of slots is
# binomial, with a relative deviation of about sqrt(n / SLOTS): 0.7 % at 3 nodes, 4 % at 100, 12 % at 1,000. The cache
# takes 512 KiB. SLOTS is part of the protocol: hosts that disagree on it disagree on owners.
SLOTS: Final = 1 << 16
_MASK: Final = SLOTS - 1
_DRAWS: Final = 1 << 32


class Rendezvous:
    """The owner of any key among weighted nodes. Immutable: a new view is a new object.

    `weights` maps node names to weights; a weight is relative (a node of weight 2 owns twice the keys of a
    node of weight 1). ValueError if a weight isn't positive and finite.

    `names` are the nodes' names, sorted. A node that joins takes keys only to itself; when one leaves, only
    its own keys move.
    """

    __slots__ = ("_holders", "_owners", "_seeds", "_weighted", "_weights", "names")

    def __init__(self, weights: Mapping[str, float]) -> None:
        for name, weight in weights.items():
            if not 0 < weight < math.inf:
                raise ValueError(f"the weight of node {name!r} must be positive and finite, not {weight!r}")
        self.names: tuple[str, ...] = tuple(sorted(weights))
        self._weights: list[float] = [weights[name] for name in self.names]
        self._weighted = len(set(self._weights)) > 1
        self._seeds: list[int] = [_seed(name) for name in self.names]
        self._owners: list[str | None] = [None] * SLOTS
        self._holders: dict[int, tuple[str | None, str | None]] = {}

    def owner(self, key: bytes) -> str | None:
        """The name of the node that owns `key`; None when there are no nodes."""
        slot = mmh3.hash(key) & _MASK
        owner = self._owners[slot]
        return self._compute_owner(slot) if owner is None else owner

    def ranking(self, key: bytes) -> list[str]:
        """All names, best first: the owner, then the node that would own `key` if those before it were gone.

        Costs O(n log n): for hand-off and for routing around a failure, not for every key.
        """
        return self.ranking_of(slot_of(key))

    def holders(self, slot: int) -> tuple[str | None, str | None]:
        """The names of the owner of a slot and of its backup, the second in the ranking; None where there is none."""
        found = self._holders.get(slot)
        if found is None:
            first, second, *_ = [*self.ranking_of(slot), None, None]
            found = self._holders[slot] = first, second
        return found

    def ranking_of(self, slot: int) -> list[str]:
        """All names in the order in which they would own a slot."""
        scores = self._scores(slot)
        names = self.names
        # A reversed sort is still stable, so equal scores stay in name order.
        return [names[i] for i in sorted(range(len(names)), key=scores.__getitem__, reverse=True)]

    def _compute_owner(self, slot: int) -> str | None:
        if not self.names:
            return None
        scores = self._scores(slot)
        # index() finds the first of equal scores: the least name.
        owner = self.names[scores.index(max(scores))]
        self._owners[slot] = owner
        return owner

    def _scores(self, slot: int) -> Sequence[float]:
        """One score for each of `names`."""
        # On one four-byte block mmh3 is a bijection of its seed, so scores tie only where two names have the
        # same 32-bit hash (1 in 8,600 among 1,000 nodes). The greater name then owns nothing; all is still
        # correct.
        block = slot.to_bytes(4, "little")
        draws = [mmh3.hash(block, seed, False) for seed in self._seeds]
        if not self._weighted:
            # -w / ln(h) grows with h, so with equal weights the integers themselves give the same order.
            return draws
        return scores(self._weights, draws)


def draws(name: str, slots: Iterable[int]) -> list[int]:
    """The draws of a node for slots. Among nodes of equal weight, the greatest draw owns a slot."""
    seed = _seed(name)
    return [mmh3.hash(slot.to_bytes(4, "little"), seed, False) for slot in slots]


def scores(weights: Iterable[float], draws: Iterable[float]) -> list[float]:
    """The score of each draw of a node with a weight. Among nodes of any weights, the greatest score owns a slot."""
    # log() may differ in its last bit between C libraries. Hosts disagree on a slot only where two scores
    # are that close, about 1 in 10**13, and then a key has two owners, which is accepted.
    return [weight / -math.log((draw + 0.5) / _DRAWS) for weight, draw in zip(weights, draws, strict=False)]


def _seed(name: str) -> int:
    return mmh3.hash(name.encode(), 0, False)


def slot_of(key: bytes) -> int:
    """The slot that a key falls into."""
    return mmh3.hash(key) & _MASK
