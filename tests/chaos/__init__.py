"""Faults on purpose: random ones in real jobs (`random_runs`), and a crash at every step (`every_step`)."""
