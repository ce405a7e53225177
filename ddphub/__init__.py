"""ddphub reports one distributed PyTorch job to a model hub as one run.

```
with ddphub.init(project="digits", name="first", config={"epochs": 6}) as run:  # in every rank
    run.log({"loss": 0.3}, step=1, epoch=0)
    run.save_checkpoint("last.pt", epoch=0)
```

`init` starts a run, see `Run`; `Hub` reads what a hub has: models, metrics, checkpoints.

```
 every rank                     rank 0 only                                     anywhere
 ----------                     -----------                                     --------
 training script
   | run.log(...)               Session
   v                              |
  Run --events--> Relay ========> |--> Spool      events, append-only on disk --.
   |         (torch.distributed   |                                             |-> Delivery --> HubClient --> hub
   |          store, no           |--> heartbeat                                |   (threads in rank 0,
   |          collectives)                                                      |    or `ddphub sync`)
   '--save_checkpoint--> StagingArea (filelock)  checkpoints, immutable on disk-'
```

`import ddphub` imports neither torch nor requests: the command line works at once on a login node.
"""

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from ddphub.distributed.topology import Topology
    from ddphub.errors import DdphubError, SettingsError
    from ddphub.reading.hub import Hub
    from ddphub.run import Run, init

__version__ = "0.1.0"

__all__ = ["DdphubError", "Hub", "Run", "SettingsError", "Topology", "__version__", "init"]

_HOMES: Final = {
    "DdphubError": "ddphub.errors",
    "Hub": "ddphub.reading.hub",
    "Run": "ddphub.run",
    "SettingsError": "ddphub.errors",
    "Topology": "ddphub.distributed.topology",
    "init": "ddphub.run",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401  # whatever the name is
    """Imports a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib  # noqa: PLC0415  # for those who use a name

    return getattr(importlib.import_module(_HOMES[name]), name)
