"""Checkpoints on their way to the hub: snapshots and the staging area."""
