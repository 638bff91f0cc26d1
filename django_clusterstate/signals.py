"""Signals of changes in the cluster, sent in order by the node's process (`manage.py clusternode`).

The signals of a member carry `identity` (name, boot, address, weight) and `old` (the previous state, None if it wasn't
known); `view_changed` carries `old` and `new`, each with `members` and `epoch`. The sender is the class `Membership`.
Receivers run in a thread of their own: they may block and use the database, whose connections are closed after each
signal. Their exceptions are logged. Web workers send no signals.
"""

from django.dispatch import Signal

member_up = Signal()  # it owns keys
member_suspect = Signal()  # no heartbeats for SUSPECT_AFTER; it keeps its keys
member_down = Signal()  # its process is gone, or no heartbeats for DOWN_AFTER; its keys move to others
member_left = Signal()  # it was stopped; its keys move to others
cluster_isolated = Signal()  # no heartbeats of most peers: this host is probably cut off
view_changed = Signal()  # the serving members have changed, and so the owners of keys
