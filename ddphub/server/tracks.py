"""Points in memory, one array a column."""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from ddphub.server import points

_COLUMNS: Final = {name: points.POINT[name].newbyteorder("=") for name in points.POINT.names or ()} | {
    # x is a float in every computation, so that steps, epochs and times are treated alike.
    "step": np.dtype(np.float64)
}


class Track:
    """The points of rank 0 in one series, or those of all other ranks, in the order of arrival."""

    def __init__(self) -> None:
        self.count = 0
        self._columns = {name: np.empty(0, dtype) for name, dtype in _COLUMNS.items()}

    def __getitem__(self, column: str) -> NDArray[np.generic]:
        return self._columns[column][: self.count]

    @property
    def bytes(self) -> int:
        """Memory of the columns."""
        return sum(column.nbytes for column in self._columns.values())

    def load(self, session: Session, series_ref: int, *, rank0: bool, count: int) -> None:
        """Read what is missing of the first `count` points of the series."""
        if count <= self.count:
            return
        if count > len(self._columns["value"]):
            # With some to spare, as a live series is loaded again and again.
            room = count + count // 4 if self.count else count
            for name, column in self._columns.items():
                self._columns[name] = np.empty(room, column.dtype)
                self._columns[name][: self.count] = column[: self.count]
        for read in points.read(session, series_ref, rank0=rank0, after=self.count):
            new = read[: count - self.count]
            for name, column in self._columns.items():
                column[self.count : self.count + len(new)] = new[name]
            self.count += len(new)
