"""The owners and the backups of all slots at once, computed from those of a view of nearly the same nodes."""

import sys
from array import array
from collections import OrderedDict
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, reduce
from itertools import compress, islice, repeat
from operator import and_, ge
from typing import Final, TypeAlias, TypeVar

from .. import rendezvous_hashing
from .slots import SlotSet, union

T = TypeVar("T")
Weights: TypeAlias = Mapping[str, float]  # by the name of a node

STEP: Final = 8192  # slots that are compared in one step: 2 ms
MAX_RANKINGS: Final = 6  # that are remembered, each of 1.3 MB
_NOBODY: Final = 0  # the code of no node
_NO_SCORE: Final = -1.0  # of no node: less than every score


class Holders:
    """The slots of each node: those that it owns, and those that it is the backup of.

    `first` and `second` give the node of each slot as an index of `names`. They are kept as bit-sliced indexes (O'Neil
    & Quass, "Improved Query Performance with Variant Indexes", SIGMOD 1997): a set of slots for each bit.
    """

    def __init__(self, names: Sequence[str], first: "array[int]", second: "array[int]") -> None:
        self._codes = {name: code for code, name in enumerate(names) if code != _NOBODY and name}
        bits = len(names).bit_length()
        self._first, self._second = _slices(first, bits), _slices(second, bits)
        self._owned: dict[str, SlotSet] = {}
        self._backed_up: dict[str, SlotSet] = {}

    def owned(self, name: str) -> SlotSet:
        """The slots in whose ranking a node is the first."""
        return self._look_up(self._owned, self._first, name)

    def backed_up(self, name: str) -> SlotSet:
        """The slots in whose ranking a node is the second."""
        return self._look_up(self._backed_up, self._second, name)

    def held(self, names: Iterable[str]) -> SlotSet:
        """The slots in whose ranking one of these nodes is the first or the second."""
        return union(slots(name) for name in names for slots in (self.owned, self.backed_up))

    def _look_up(self, known: dict[str, SlotSet], slices: list[tuple[SlotSet, SlotSet]], name: str) -> SlotSet:
        if name not in self._codes:
            return SlotSet()
        if name not in known:
            code = self._codes[name]
            known[name] = reduce(and_, (both[code >> bit & 1] for bit, both in enumerate(slices)))
        return known[name]


def _slices(codes: "array[int]", bits: int) -> list[tuple[SlotSet, SlotSet]]:
    """For each bit, the slots whose code lacks it, and those whose code has it."""
    data, every = codes.tobytes(), SlotSet.all()
    halves = (data[::2], data[1::2]) if sys.byteorder == "little" else (data[1::2], data[::2])
    ones = (SlotSet.of_flags(halves[bit >> 3].translate(_HAS_BIT[bit & 7])) for bit in range(bits))
    return [(every - slots, slots) for slots in ones]


_HAS_BIT: Final = [bytes(byte >> bit & 1 for byte in range(256)) for bit in range(8)]


class Ranking:
    """The first two nodes in the ranking of each slot, as `Rendezvous` ranks them.

    `first` and `second` have for each slot the index of the node in `names`; 0 if there is none.
    """

    def __init__(self) -> None:
        slots = rendezvous_hashing.SLOTS
        self.weights: dict[str, float] = {}
        self.names: list[str] = [""]
        self.first = array("H", [_NOBODY]) * slots
        self.second = array("H", [_NOBODY]) * slots
        self._best = array("d", [_NO_SCORE]) * slots  # the scores of the first
        self._next = array("d", [_NO_SCORE]) * slots  # the scores of the second
        self._weighted = False  # while all weights are equal, the draws are the scores

    @cached_property
    def holders(self) -> Holders:
        return Holders(self.names, self.first, self.second)

    def challenge(
        self, name: str, weight: float, slots: Iterable[int]
    ) -> Generator[None, None, tuple[SlotSet, SlotSet]]:
        """Computes which of some slots another node would own, and which it would own or back up, in steps."""
        weighted = self._weighted or self._would_be_weighted([weight])
        owned: list[int] = []
        held: list[int] = []
        for some in _steps(slots):
            scores = _scores(name, weight if weighted else None, some)
            for won, nodes, known in ((owned, self.first, self._best), (held, self.second, self._next)):
                rivals: Sequence[float] = [known[slot] for slot in some]
                if weighted and not self._weighted:
                    rivals = self._weigh(rivals)
                close = compress(zip(some, scores, rivals, strict=True), map(ge, scores, rivals))
                won += [slot for slot, score, rival in close if score > rival or name < self.names[nodes[slot]]]
            yield
        return SlotSet(owned), SlotSet(held)

    def derive(self, weights: Weights) -> Generator[None, None, "Ranking"]:
        """Computes the ranking of other nodes, in steps."""
        ranking = Ranking()
        ranking.weights, ranking.names, ranking._weighted = dict(self.weights), list(self.names), self._weighted
        ranking.first, ranking.second = self.first[:], self.second[:]
        ranking._best, ranking._next = self._best[:], self._next[:]
        yield from ranking._change(weights)
        return ranking

    def _change(self, weights: Weights) -> Iterator[None]:
        if not self._weighted and self._would_be_weighted(weights.values()):
            self._best = array("d", self._weigh(self._best))
            yield
            self._next = array("d", self._weigh(self._next))
            self._weighted = True
            yield
        gone = {name for name, weight in self.weights.items() if weights.get(name) != weight}
        if gone:
            yield from self._remove(gone)
        for name in weights.keys() - self.weights.keys():
            self.weights[name] = weights[name]
            if "" in self.names[1:]:
                self.names[self.names.index("", 1)] = name
            else:
                self.names.append(name)
            yield from self._merge(name, range(rendezvous_hashing.SLOTS))

    def _would_be_weighted(self, weights: Iterable[float]) -> bool:
        return len({*self.weights.values(), *weights}) > 1

    def _weigh(self, draws: Sequence[float]) -> Sequence[float]:
        """The scores of draws of nodes that have all the same weight."""
        if not draws or draws[0] == _NO_SCORE:  # then all are
            return draws
        return rendezvous_hashing.scores(repeat(next(iter(self.weights.values()))), draws)

    def _remove(self, gone: set[str]) -> Iterator[None]:
        touched = list(Holders(self.names, self.first, self.second).held(gone))
        codes = {self.names.index(name) for name in gone}
        for slots in _steps(touched):
            for slot in slots:
                if self.first[slot] in codes:
                    self.first[slot], self._best[slot] = self.second[slot], self._next[slot]
                    if self.first[slot] in codes:
                        self.first[slot], self._best[slot] = _NOBODY, _NO_SCORE
                self.second[slot], self._next[slot] = _NOBODY, _NO_SCORE
            yield
        for name in gone:
            del self.weights[name]
            self.names[self.names.index(name)] = ""
        for name in self.weights:
            code = self.names.index(name)
            yield from self._merge(name, (slot for slot in touched if self.first[slot] != code))

    def _merge(self, name: str, slots: Iterable[int]) -> Iterator[None]:
        """Compares a node with the first two of some slots, where it isn't the first."""
        code, weight = self.names.index(name), self.weights[name] if self._weighted else None
        names, first, second, best, next_ = self.names, self.first, self.second, self._best, self._next
        for some in _steps(slots):
            scores = _scores(name, weight, some)
            for slot, score in compress(zip(some, scores, strict=True), map(ge, scores, [next_[s] for s in some])):
                if score > best[slot] or (score == best[slot] and name < names[first[slot]]):
                    second[slot], next_[slot] = first[slot], best[slot]
                    first[slot], best[slot] = code, score
                elif score > next_[slot] or name < names[second[slot]]:
                    second[slot], next_[slot] = code, score
            yield


class Rankings:
    """The rankings that were needed last."""

    def __init__(self) -> None:
        self._recent: OrderedDict[frozenset[tuple[str, float]], Ranking] = OrderedDict()

    def __contains__(self, ranking: Ranking) -> bool:
        return ranking in self._recent.values()

    def prepare(self, weights: Weights) -> Generator[None, None, Ranking]:
        """Computes a ranking in steps of a few milliseconds."""
        key = frozenset(weights.items())
        ranking = self._recent.get(key)
        if ranking is None:
            known = [Ranking(), *self._recent.values()]
            nearest = min(known, key=lambda ranking: len(key ^ ranking.weights.items()))
            ranking = yield from nearest.derive(weights)
            yield
        ranking.holders  # noqa: B018 - they are computed when they are first asked for
        self._recent[key] = ranking
        self._recent.move_to_end(key)
        if len(self._recent) > MAX_RANKINGS:
            self._recent.popitem(last=False)
        return ranking

    def get(self, weights: Weights) -> Ranking:
        """The ranking of some nodes."""
        return result(self.prepare(weights))


def result(steps: Generator[None, None, T]) -> T:
    """Goes through all steps at once. Returns what they have computed."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: T = end.value
            return found


def _scores(name: str, weight: float | None, slots: Iterable[int]) -> Sequence[float]:
    draws = rendezvous_hashing.draws(name, slots)
    return draws if weight is None else rendezvous_hashing.scores(repeat(weight), draws)


def _steps(slots: Iterable[int]) -> Iterator[list[int]]:
    rest = iter(slots)
    while some := list(islice(rest, STEP)):
        yield some
