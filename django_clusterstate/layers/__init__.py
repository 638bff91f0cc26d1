"""The embedded channel layer: Channels messages by way of the cluster's nodes, without another server.

The channels of a process (`specific.…!…`) and their group memberships live on this host's node. Any other channel lives
on the node that owns its name. A group message goes once to every node, over the links between nodes. Delivery is at
most once, as the channel-layer specification allows: a node that is killed loses the messages in its queues.
"""

from .channel_layer import ClusterChannelLayer

__all__ = ["ClusterChannelLayer"]
