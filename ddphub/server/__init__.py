"""The self-hosted hub: `ddphub serve`.

```
serving ── app ── api/, pages/         requests and answers
            └──── hub                  the parts, wired
                   ├── database        tables, migrations/
                   ├── directory       blobs: parts and files of checkpoints
                   ├── commits         a checkpoint from its first request to its commit
                   └── auth, signing   keys, part URLs, browser sessions
```

Events: `incoming_events` checks them, `event_log` stores them, `attempts` derives what they say.
"""

from ddphub.server.serving import serve
from ddphub.server.settings import ServerSettings

__all__ = ["ServerSettings", "serve"]
