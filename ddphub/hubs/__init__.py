"""Hubs: the protocol that Delivery speaks to, and one file per hub."""
