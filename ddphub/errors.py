"""What can go wrong, as a tree.

```
DdphubError
├── SettingsError (ValueError)    a setting is wrong; raised by `init`, before training
├── StagingError                  a checkpoint could not be staged; reported, never raised into the loop
├── JournalError                  a file of the run directory does not say what it should
├── BackupError                   a backup of a hub cannot be made, read or restored
└── HubError                      a request to the hub did not succeed; raised to Delivery only
    ├── HubUnavailable            try again later: connection, timeout, 5xx, 429, an answer that is no answer
    ├── HubUnauthorized           the hub does not know the key (401, 403)
    ├── HubModelGone              the hub no longer has the model (404, 410)
    └── HubRejected               the hub will never take this (other 4xx): set it aside
```
"""


class DdphubError(Exception):
    """Anything that ddphub raises."""


class SettingsError(DdphubError, ValueError):
    """A setting is wrong: says which, its value, where it came from and what is expected."""

    def __init__(self, field: str, value: object, source: str, expected: str) -> None:
        super().__init__(field, value, source, expected)
        self.field = field
        self.value = value
        self.source = source
        self.expected = expected

    def __str__(self) -> str:
        return f"{self.field}={self.value!r} (from {self.source}): {self.expected}"


class StagingError(DdphubError):
    """A checkpoint could not be staged: says why and what to do."""


class JournalError(DdphubError):
    """A file of the run directory does not say what it should."""


class BackupError(DdphubError):
    """A backup of a hub cannot be made, read or restored: says why and what to do."""


class HubError(DdphubError):
    """A request to the hub did not succeed."""


class HubUnavailable(HubError):
    """The hub did not answer, or asks to be asked later.

    Args:
        message: what happened.
        retry_after: seconds the hub asked to wait (`Retry-After`), or None.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message, retry_after)
        self.message = message
        self.retry_after = retry_after

    def __str__(self) -> str:
        return self.message


class HubUnauthorized(HubError):
    """The hub does not know the API key, or the key may not do this (401, 403)."""


class HubModelGone(HubError):
    """The hub no longer has this model (404, 410)."""


class HubRejected(HubError):
    """The hub will never take this request as it is.

    Args:
        status: the HTTP status, a 4xx.
        message: what the hub said.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message

    def __str__(self) -> str:
        return f"{self.status}: {self.message}"
