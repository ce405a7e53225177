"""Who asks, and what that may do.

| role | in a project, or in all of them |
| --- | --- |
| `reader` | sees models and downloads checkpoints |
| `reporter` | the same, and sends what a run reports: all that a writer's key for one run can do |
| `writer` | the same, and makes runs, changes labels and asks runs to stop; in all projects also makes projects |
| `admin` | the same, and deletes, sets retention and makes keys; in all projects also users: the hub's admin |

What a principal can do somewhere is the weakest of what its key says and what its user was granted there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

Role = Literal["reader", "reporter", "writer", "admin"]

ROLES: Final = ("reader", "writer", "admin")
"""What keys and grants say, the weakest first."""

_STRENGTH: Final[Mapping[str, int]] = {"reader": 1, "reporter": 2, "writer": 3, "admin": 4}


def stronger(role: str, other: str) -> bool:
    """Whether `role` may do more than `other`."""
    return _STRENGTH[role] > _STRENGTH[other]


@dataclass(frozen=True, kw_only=True)
class Principal:
    """Who asks: the holder of a key, or a browser that signed in with one.

    Attributes:
        who: the user's name; of a key without a user `key` and the key's name.
        role: the most that the key can do.
        key_id: the key's id; None for the key of the settings.
        project: the one project that the key is good for, by its number; None for all.
        run_id: the one run of that project that the key is good for; None for all.
        expires_at: when the key expires, seconds since the epoch; None for never.
        user: the user's number; None for a key without one.
        grants: what its user may do, by a project's number or None for all; None for a key without a user.
        address: where the request came from.
        request_id: the request's.
    """

    who: str
    role: str
    key_id: str | None = None
    project: int | None = None
    run_id: str | None = None
    expires_at: float | None = None
    user: int | None = None
    grants: Mapping[int | None, str] | None = None
    address: str | None = field(default=None, compare=False)
    request_id: str | None = field(default=None, compare=False)

    @classmethod
    def of_the_hub(cls, who: str) -> "Principal":
        """What the hub does by itself, as removing what retention says; and who has the key of its settings."""
        return cls(who=who, role="admin")

    def may(self, role: Role, project: int | None) -> bool:
        """Whether it can do what `role` can in a project, or with None in all of them."""
        return self._strength(project) >= _STRENGTH[role]

    def role_in(self, project: int | None) -> str | None:
        """The strongest role that it has in a project, or with None in all of them; None when it has none."""
        strength = self._strength(project)
        return next((role for role, enough in _STRENGTH.items() if enough == strength), None)

    def _strength(self, project: int | None) -> int:
        if self.project not in {None, project}:
            return 0
        strength = _STRENGTH[self.role]
        if self.grants is not None:
            granted = [self.grants[where] for where in (None, project) if where in self.grants]
            strength = min(strength, max((_STRENGTH[role] for role in granted), default=0))
        return strength if self.run_id is None else min(strength, _STRENGTH["reporter"])

    @property
    def only_run(self) -> tuple[int, str] | None:
        """The project and the id of the one run that the key is good for; None for a key that has no such limit."""
        if self.run_id is None:
            return None
        # A key for a run is made with its project; one without would be good for nothing.
        return (-1 if self.project is None else self.project), self.run_id

    @property
    def visible(self) -> frozenset[int] | None:
        """The projects that it may read, by their numbers; None for all."""
        if self.project is not None:
            return frozenset({self.project} if self.may("reader", self.project) else ())
        if self.grants is None or None in self.grants:
            return None
        return frozenset(project for project in self.grants if project is not None)

    @property
    def is_admin(self) -> bool:
        """Whether it is the hub's admin."""
        return self.may("admin", None)

    def sees(self, project: int, run_id: str | None) -> bool:
        """Whether a run of a project is there for it."""
        return self.may("reader", project) and self.only_run in {None, (project, run_id)}
