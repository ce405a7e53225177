"""A set of sequence numbers, kept as ranges: what of a stream has arrived, been delivered, is missing."""

from bisect import bisect_left


class SeqSet:
    """Whole numbers from 0 up, as sorted disjoint ranges; small because streams arrive nearly in order."""

    def __init__(self) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []

    def add(self, first: int, last: int) -> int:
        """Adds first..last (both included) and returns how many of them are new."""
        before = self.count()
        start = bisect_left(self._lasts, first - 1)
        end = start
        while end < len(self._firsts) and self._firsts[end] <= last + 1:
            first = min(first, self._firsts[end])
            last = max(last, self._lasts[end])
            end += 1
        self._firsts[start:end] = [first]
        self._lasts[start:end] = [last]
        return self.count() - before

    def contiguous(self, first: int = 0) -> int:
        """The highest number up to which every number from `first` is here; first - 1 when `first` is missing."""
        index = bisect_left(self._lasts, first)
        is_here = index < len(self._firsts) and self._firsts[index] <= first
        return self._lasts[index] if is_here else first - 1

    def covers(self, first: int, last: int) -> bool:
        """Whether all of first..last are here."""
        index = bisect_left(self._lasts, first)
        return index < len(self._firsts) and self._firsts[index] <= first and last <= self._lasts[index]

    def ranges(self) -> list[tuple[int, int]]:
        """The ranges as (first, last), sorted."""
        return list(zip(self._firsts, self._lasts, strict=True))

    def count(self) -> int:
        """How many numbers are here; `len` would fail beyond 63 bits."""
        return sum(self._lasts) - sum(self._firsts) + len(self._firsts)

    def __len__(self) -> int:
        return self.count()
