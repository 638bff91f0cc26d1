"""Keys: derived as documented, different for each purpose, and never shown."""

import copy
import hmac
import pickle
import traceback
from collections.abc import Callable

import pytest

from django_clusterstate.wire.derived_keys import MAX_SECRETS, SecretKey, derive_heartbeat_keys, derive_link_keys


def by_hand(secret: bytes, info: bytes) -> bytes:
    """HKDF with SHA-256 (RFC 5869), written out: extract, then one block of expand."""
    return hmac.digest(hmac.digest(b"django-clusterstate", secret, "sha256"), info + b"\x01", "sha256")


def test_keys_are_derived_as_in_rfc_5869() -> None:
    (link,) = derive_link_keys(["secret"], "blue")
    assert link.psk == SecretKey(by_hand(b"secret", b"clusterstate|seal2|blue"))
    assert link.offers == SecretKey(by_hand(b"secret", b"clusterstate|seal2-id|blue"))
    assert derive_heartbeat_keys(["secret"], "blue") == (SecretKey(by_hand(b"secret", b"clusterstate|channel|blue")),)


def test_expansion_is_as_in_rfc_5869() -> None:
    # Its test case 3: zero-length salt and info.
    (first,) = SecretKey(b"\x0b" * 22).expand(SecretKey(b""), 1)
    assert first == SecretKey(bytes.fromhex("8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"))


def test_keys_differ_by_secret_purpose_and_cluster() -> None:
    keys = [
        key
        for cluster in ("a", "b")
        for link in derive_link_keys(["one", "two"], cluster)
        for key in (link.psk, link.offers)
    ]
    keys += [key for cluster in ("a", "b") for key in derive_heartbeat_keys(["one", "two"], cluster)]
    assert len(set(keys)) == 12


def test_only_the_first_four_secrets_are_used() -> None:
    secrets = [str(number) for number in range(MAX_SECRETS + 3)]
    assert derive_link_keys(secrets, "a") == derive_link_keys(secrets[:MAX_SECRETS], "a")
    assert len(derive_heartbeat_keys(secrets, "a")) == MAX_SECRETS


def test_repr_of_a_key_shows_nothing_of_it() -> None:
    material = b"what must never be seen 12345678"
    link = derive_link_keys(["secret"], "blue")[0]
    for shown in (
        repr(SecretKey(material)),
        str(SecretKey(material)),
        f"{SecretKey(material)!r:>20}",
        repr(link),
        repr([link]),
    ):
        assert "see" not in shown
        assert "<SecretKey>" in shown


@pytest.mark.parametrize("leak", [pickle.dumps, copy.copy, copy.deepcopy])
def test_key_cannot_be_pickled_or_copied(leak: Callable[[object], object]) -> None:
    with pytest.raises(TypeError, match="cannot be pickled or copied"):
        leak(SecretKey(b"k"))


def test_traceback_with_variables_shows_no_key() -> None:
    key = SecretKey(b"what must never be seen 12345678")
    salt = SecretKey(b"nor must this never be seen")
    try:
        key.expand(salt, 10**9)
    except Exception as error:
        shown = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    assert "HKDF" in shown
    assert "never be seen" not in shown
