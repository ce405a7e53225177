"""What rank 0 alone does: spool, delivery, heartbeat."""
