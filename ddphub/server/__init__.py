"""The self-hosted hub: `ddphub serve`.

```
serving ── app ── api/, pages/         requests and answers
            └──── hub                  the parts, wired
                   ├── database        tables, migrations/
                   ├── storage/        bytes of checkpoints: in the data directory, or in an object storage
                   ├── commits         a checkpoint from its first request to its commit
                   │                   (arrivals: what came of it; leases: who checks it; leftovers: what nothing needs)
                   ├── uploads         a checkpoint that comes whole in one request (HUB v1)
                   └── auth, signing   keys, signed URLs, browser sessions
```

Events: `incoming_events` checks them, `event_log` stores them, `attempts` derives what they say. `hub_v1` makes events
of what HUB v1 clients report, and `hub_v1_view` tells those clients of a model in their words.
"""

from ddphub.server.serving import serve
from ddphub.server.settings import ServerSettings

__all__ = ["ServerSettings", "serve"]
