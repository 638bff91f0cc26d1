"""Copies of the keys on other nodes: which node holds which, and what they send each other. Pure: see `replication`."""
