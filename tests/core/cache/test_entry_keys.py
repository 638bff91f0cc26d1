"""What is kept beside an entry is in its namespace, and on its owner."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_clusterstate.core.cache.entry_keys import MAX_BYTES, auxiliary_key, slot_of_entry
from django_clusterstate.core.rendezvous_hashing import SLOTS, slot_of

NAMES = st.binary(max_size=200).filter(lambda name: b"\0" not in name)


@pytest.mark.parametrize("length", [1, 500, 1000, 1018])
def test_auxiliary_keys_are_unique_and_in_the_namespace_of_their_entry(length: int) -> None:
    keys = [b"space\0" + b"k" * length, b"space\0" + b"k" * (length - 1) + b"l"]
    made = {auxiliary_key(key, kind) for key in keys for kind in (b"lease", b"fresh")}
    assert len(made) == 4
    assert all(key.startswith(b"space\0\0") and len(key) <= MAX_BYTES for key in made)


@given(NAMES, st.binary(min_size=1, max_size=800).filter(lambda rest: not rest.startswith(b"\0")))
def test_auxiliary_key_has_the_slot_of_its_entry(namespace: bytes, rest: bytes) -> None:
    key = namespace + b"\0" + rest
    assert slot_of_entry(key) == slot_of(key)
    assert slot_of_entry(auxiliary_key(key, b"lease")) == slot_of(key)


@given(st.binary(max_size=20))
def test_each_key_has_a_slot(key: bytes) -> None:
    assert 0 <= slot_of_entry(key) < SLOTS
