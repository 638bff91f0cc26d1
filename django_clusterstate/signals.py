"""Sent in the node's process (`manage.py clusternode`) when a member's state changes.

Each carries `sender` (the class `Membership`), `identity` (name, boot, address, weight) and `old` (the state before,
None when it wasn't known). Receivers run in order in a thread of their own: they may block, and what they raise is
logged. They aren't sent in web workers.
"""

from django.dispatch import Signal

member_up = Signal()  # it owns keys from now on
member_suspect = Signal()  # silent for a while; keeps its keys
member_down = Signal()  # gone without a word; its keys go to others
member_left = Signal()  # it said that it leaves; its keys go to others
