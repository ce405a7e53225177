"""The HTTP API: one file per resource; every route needs a key except `healthz` and signed URLs."""
