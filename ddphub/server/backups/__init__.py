"""Backups of a hub: its database as plain text, its checkpoints by their digests, in a folder of their own."""
