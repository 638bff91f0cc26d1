"""Replies of one connection that wait for another node."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from django_clusterstate.node.late_replies import MAX_WAITING, LateReplies
from django_clusterstate.wire.messages import DoneReply, Reply


@given(st.lists(st.booleans(), min_size=1, max_size=MAX_WAITING + 5), st.randoms(use_true_random=False))
def test_replies_leave_in_the_order_of_their_requests(late: list[bool], chance: object) -> None:
    async def run() -> None:
        sent: list[bytes] = []
        replies = LateReplies(lambda reply: b"%d " % reply.epoch, lambda frames, _: sent.append(frames))
        waiting: list[tuple[int, asyncio.Future[Reply]]] = []
        for number, is_late in enumerate(late):
            if is_late:
                future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
                waiting.append((number, future))
                replies.add(future)
            elif replies:
                replies.add(DoneReply(number))
            else:
                sent.append(b"%d " % number)
            assert replies.full is (len(replies) >= MAX_WAITING)
        chance.shuffle(waiting)  # type: ignore[attr-defined]
        for number, future in waiting:
            future.set_result(DoneReply(number))
            await asyncio.sleep(0)
        assert b"".join(sent).split() == [b"%d" % number for number in range(len(late))]
        assert not replies

    asyncio.run(run())


def test_whoever_sends_knows_when_there_was_no_room() -> None:
    async def run() -> None:
        told: list[bool] = []
        replies = LateReplies(lambda _: b"x", lambda _, was_full: told.append(was_full))
        futures: list[asyncio.Future[Reply]] = [asyncio.get_running_loop().create_future() for _ in range(MAX_WAITING)]
        for future in futures:
            replies.add(future)
        for future in futures[:2]:
            future.set_result(DoneReply(1))
            await asyncio.sleep(0)
        assert told == [True, False]

    asyncio.run(run())
