"""Who a process is and how its events reach rank 0; the one place that imports torch."""
