"""What a requester remembers of denials."""

from django_clusterstate.ratelimit.denials import MAX_AGE, MAX_ENTRIES, Denials


def noted(retry_after: float = 60.0, cost: int = 2) -> Denials[str]:
    denials: Denials[str] = Denials()
    denials.note(b"k", "limit", cost, "no", retry_after, asked=100.0)
    return denials


def test_denial_is_remembered_until_it_ends_but_not_for_long() -> None:
    assert noted().find(b"k", "limit", 2, 100.5) == ("no", 0.5)
    assert noted().find(b"k", "limit", 2, 100.0 + MAX_AGE) is None
    assert noted(0.25).find(b"k", "limit", 2, 100.2) is not None
    assert noted(0.25).find(b"k", "limit", 2, 100.25) is None


def test_denial_says_nothing_of_cheaper_hits_other_limits_and_other_keys() -> None:
    assert noted().find(b"k", "limit", 3, 100.0) is not None
    assert noted().find(b"k", "limit", 1, 100.0) is None
    assert noted().find(b"k", "another", 2, 100.0) is None
    assert noted().find(b"other", "limit", 2, 100.0) is None


def test_limits_are_compared_by_what_they_say() -> None:
    denials: Denials[str] = Denials()
    denials.note(b"k", ("10/m", "local"), 1, "no", 60.0, 100.0)
    assert denials.find(b"k", ("10/m", "local"), 1, 100.0) is not None


def test_denial_is_forgotten_when_told_so_and_replaced_by_a_later_one() -> None:
    denials = noted()
    denials.note(b"k", "limit", 2, "still no", 60.0, asked=101.0)
    assert denials.find(b"k", "limit", 2, 101.5) == ("still no", 0.5)
    denials.forget(b"k")
    denials.forget(b"k")
    assert denials.find(b"k", "limit", 2, 101.5) is None


def test_how_often_it_answered_is_told_once() -> None:
    denials = noted()
    assert denials.take_answered(b"k") == 0
    for cost in (1, 2, 3):
        denials.find(b"k", "limit", cost, 100.5)
    assert denials.take_answered(b"k") == 2
    assert denials.take_answered(b"k") == 0


def test_how_often_is_forgotten_with_the_denial() -> None:
    denials: Denials[int] = Denials()
    for number in range(MAX_ENTRIES + 10):
        denials.note(b"%d" % number, "limit", 1, number, 60.0, 100.0)
        denials.find(b"%d" % number, "limit", 1, 100.0)
    denials.forget(b"11")
    assert [denials.take_answered(b"%d" % number) for number in (9, 10, 11)] == [0, 1, 0]


def test_no_more_are_kept_than_the_bound_and_the_latest_are() -> None:
    denials: Denials[int] = Denials()
    for number in range(MAX_ENTRIES + 10):
        denials.note(b"%d" % number, "limit", 1, number, 60.0, 100.0)
    assert len(denials) == MAX_ENTRIES
    assert denials.find(b"9", "limit", 1, 100.0) is None
    assert denials.find(b"10", "limit", 1, 100.0) is not None
