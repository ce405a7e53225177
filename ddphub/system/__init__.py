"""What a rank measures of its process, its machine and its GPU, beside what the script logs."""

from collections.abc import Callable

Figure = Callable[[], float]
"""Measures one thing; may raise, and may hang with what it asks."""
