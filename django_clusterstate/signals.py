"""Sent in the node's process (`manage.py clusternode`) when something happens to the cluster, in that order.

Those of a member carry `identity` (name, boot, address, weight) and `old` (the state before, None when it wasn't
known); `view_changed` carries `old` and `new`, each with `members` and `epoch`. The sender is the class `Membership`.
Receivers run in a thread of their own: they may block and use the database, whose connections are closed after each
event, and what they raise is logged. Nothing is sent in web workers.
"""

from django.dispatch import Signal

member_up = Signal()  # it owns keys from now on
member_suspect = Signal()  # silent for a while; keeps its keys
member_down = Signal()  # gone without a word; its keys go to others
member_left = Signal()  # it said that it leaves; its keys go to others
cluster_isolated = Signal()  # most peers fell silent at once: this host is probably cut off
view_changed = Signal()  # who serves has changed, and so who owns which keys
