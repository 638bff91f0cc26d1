"""A byte stream gives the same payloads however it is split, and the buffer is bounded."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_clusterstate.exceptions import ProtocolError
from django_clusterstate.wire.framing import HANDSHAKE_LIMIT, HEADER, MAX_FRAME, MAX_REQUEST, Deframer, frame

PAYLOADS = [b"first", b"", b"x" * 300, b"\0\0\0\1", b"last"]
STREAM = b"".join(frame(payload) for payload in PAYLOADS)


def fed(deframer: Deframer, *pieces: bytes) -> list[bytes]:
    return [bytes(payload) for piece in pieces for payload in deframer.feed(piece)]


@pytest.mark.parametrize("at", range(len(STREAM) + 1))
def test_stream_split_anywhere_gives_the_same_payloads(at: int) -> None:
    assert fed(Deframer(), STREAM[:at], STREAM[at:]) == PAYLOADS


def test_stream_byte_by_byte_gives_the_same_payloads() -> None:
    assert fed(Deframer(), *(STREAM[i : i + 1] for i in range(len(STREAM)))) == PAYLOADS


def test_several_frames_in_one_piece_come_out_at_once() -> None:
    assert fed(Deframer(), STREAM) == PAYLOADS


@given(st.lists(st.binary(max_size=600), max_size=8), st.lists(st.integers(1, 700), min_size=1))
def test_any_payloads_survive_any_split(payloads: list[bytes], sizes: list[int]) -> None:
    stream, pieces, turn = b"".join(map(frame, payloads)), [], 0
    while stream:
        size = sizes[turn % len(sizes)]
        pieces.append(stream[:size])
        stream, turn = stream[size:], turn + 1
    assert fed(Deframer(), *pieces) == payloads


def test_frame_is_complete_with_its_last_byte_and_not_before() -> None:
    deframer = Deframer()
    assert fed(deframer, STREAM[: HEADER + 4]) == []
    assert fed(deframer, STREAM[HEADER + 4 : HEADER + 5]) == [b"first"]


def test_length_above_the_limit_is_refused_before_its_bytes_arrive() -> None:
    deframer = Deframer(100)
    assert fed(deframer, (100).to_bytes(HEADER, "big")[:3]) == []
    with pytest.raises(ProtocolError, match="a frame of 101 bytes, more than 100"):
        Deframer(100).feed((101).to_bytes(HEADER, "big"))


def test_frame_of_exactly_the_limit_passes() -> None:
    payload = b"x" * MAX_FRAME
    assert fed(Deframer(), frame(payload, MAX_FRAME)) == [payload]


def test_limit_can_be_raised_after_the_handshake() -> None:
    deframer = Deframer(HANDSHAKE_LIMIT)
    long = frame(b"x" * (HANDSHAKE_LIMIT + 1))
    with pytest.raises(ProtocolError):
        deframer.feed(long)
    deframer = Deframer(HANDSHAKE_LIMIT)
    deframer.limit = MAX_FRAME
    assert len(deframer.feed(long)) == 1


def test_message_longer_than_the_limit_is_not_framed() -> None:
    assert len(frame(b"x" * MAX_REQUEST)) == HEADER + MAX_REQUEST
    with pytest.raises(ValueError, match="longer than the limit"):
        frame(b"x" * (MAX_REQUEST + 1))


@given(st.lists(st.binary(min_size=1, max_size=2000), max_size=10))
def test_random_bytes_give_payloads_or_a_protocol_error_and_buffer_little(pieces: list[bytes]) -> None:
    deframer = Deframer(HANDSHAKE_LIMIT)
    try:
        for piece in pieces:
            assert all(len(payload) <= HANDSHAKE_LIMIT for payload in deframer.feed(piece))
            assert sys.getsizeof(deframer._rest) < HEADER + HANDSHAKE_LIMIT + 100
    except ProtocolError:
        pass
