"""Every message between a requester and a node, and between nodes. Import this package: `from ..wire import messages`.

A connection carries requests one way and one reply to each the other way, in the same order. `Deliver`, `Forward` and
some kinds of `Replicate` have no reply, and the reply to `Receive` comes when a message is there or the time is up.
Each reply carries the epoch of the answering node's view, by which a requester notices that its own view is stale.

A key is the namespace, a zero byte, and the rest. A value is bytes, which no node interprets, or an integer, which a
node can add to. Durations are seconds. No timestamp crosses the wire, since the clocks of hosts differ.
"""

from .codec import *  # noqa: F403 - so that the names are not listed twice
from .copies import *  # noqa: F403 - so that the names are not listed twice
from .fields import *  # noqa: F403 - so that the names are not listed twice
from .replies import *  # noqa: F403 - so that the names are not listed twice
from .requests import *  # noqa: F403 - so that the names are not listed twice
