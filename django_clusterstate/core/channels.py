"""Channels in memory, at a node and in a process: their bounds, and the memberships of channels in groups. Pure."""

from collections.abc import Iterator

from .expiry import Expiry

MAX_BYTES = 64 * 1024 * 1024  # of all messages, with overhead
OVERHEAD = 256  # bytes that a message counts in addition, so that the number of empty ones is bounded
QUEUE_OVERHEAD = 900  # bytes of a queue without its messages, about: measured on CPython 3.11
ABANDONED_AFTER = 5.0  # seconds without a receiver after which a lost message doesn't count as dropped
MAX_MEMBERSHIPS = 100_000


class ChannelGroups:
    """Groups of channels. Each membership expires. Times are seconds of the caller's clock."""

    def __init__(self) -> None:
        self._groups: dict[str, dict[str, float]] = {}
        self._expiry: Expiry[tuple[str, str]] = Expiry()

    def __len__(self) -> int:
        """The number of memberships."""
        return len(self._expiry)

    def add(self, group: str, channel: str, expiry: float, now: float) -> bool:
        """Adds a channel for `expiry` seconds, or renews its membership. False if there are too many memberships."""
        if channel not in self._groups.get(group, ()) and len(self) >= MAX_MEMBERSHIPS:
            return False
        self._groups.setdefault(group, {})[channel] = now + expiry
        self._expiry.set((group, channel), now + expiry, now)
        return True

    def discard(self, group: str, channel: str) -> None:
        members = self._groups.get(group)
        if members is not None and members.pop(channel, None) is not None:
            self._expiry.discard((group, channel))
            if not members:
                del self._groups[group]

    def channels(self, group: str, now: float) -> list[str]:
        return [channel for channel, until in self._groups.get(group, {}).items() if until > now]

    def remaining(self, now: float) -> Iterator[tuple[str, str, float]]:
        """(group, channel, seconds until it expires) of each membership."""
        for group, members in self._groups.items():
            for channel, until in members.items():
                if until > now:
                    yield group, channel, until - now

    def expire(self, now: float, budget: int) -> int:
        """Frees at most `budget` expired memberships, and returns how many it freed."""
        freed = 0
        while freed < budget and (membership := self._expiry.pop(now)) is not None:
            self.discard(*membership)
            freed += 1
        return freed
