"""Benchmarks of ddphub beside what people use today: `scripts/bench`."""
