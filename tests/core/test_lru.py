from collections import OrderedDict

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from django_clusterstate.core.lru import Lru, Rings


def test_rows_leave_a_ring_in_the_order_in_which_they_came_or_were_renewed() -> None:
    rings = Rings()
    for _ in range(6):
        rings.add_row()
    for row in (1, 2, 3):
        rings.append(row, 0)
    rings.append(5, 4)
    rings.renew(1, 0)
    rings.renew(5, 4)
    rings.remove(2)
    assert rings.first(4) == 5
    order = []
    while (row := rings.first(0)) != 0:
        order.append(row)
        rings.remove(row)
    assert order == [3, 1]


def test_rows_of_keys_that_went_are_used_again() -> None:
    lru = Lru[int]()
    for number in range(1000):
        lru[b"%d" % number] = number
        if number >= 10:
            assert lru.pop_first() == number - 10
    assert len(lru) == 10
    assert len(lru._keys) <= 12


keys = st.sampled_from([b"1", b"2", b"3", b"4", b"5"])


class AsAnOrderedDict(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.lru = Lru[int]()
        self.model: OrderedDict[bytes, int] = OrderedDict()

    @rule(key=keys, value=st.integers(0, 9))
    def add(self, key: bytes, value: int) -> None:
        if key not in self.lru:
            self.lru[key] = self.model[key] = value

    @rule(key=keys)
    def get(self, key: bytes) -> None:
        assert self.lru.get(key) == self.model.get(key)

    @rule(key=keys)
    def use(self, key: bytes) -> None:
        assert self.lru.use(key) == self.model.get(key)
        if key in self.model:
            self.model.move_to_end(key)

    @rule(key=keys)
    def pop(self, key: bytes) -> None:
        if key in self.lru:
            assert self.lru.pop(key) == self.model.pop(key)

    @precondition(lambda self: self.model)
    @rule()
    def pop_first(self) -> None:
        assert self.lru.pop_first() == self.model.popitem(last=False)[1]

    @invariant()
    def holds_the_same_in_the_same_order(self) -> None:
        assert list(self.lru) == list(self.model)
        assert len(self.lru) == len(self.model)
        assert [key in self.lru for key in (b"1", b"2", b"6")] == [key in self.model for key in (b"1", b"2", b"6")]


TestLruIsAnOrderedDict = AsAnOrderedDict.TestCase
