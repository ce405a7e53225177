"""The limit: inserts the rows that a hub has stored into a fresh SQLite file: `CONTESTANT HUB_DATABASE FILE AT_ONCE`.

The same table with the same keys and indexes, the same rows, as many in a transaction as a request brought, journal and
`synchronous` as the hub has them. The rows are in memory before the clock starts.
"""

import json
import sqlite3
import sys
import time


def main() -> None:
    """Inserts them."""
    _, source, target, at_once = sys.argv[1:]
    hub = sqlite3.connect(source)
    schema = [sql for (sql,) in hub.execute("SELECT sql FROM sqlite_master WHERE tbl_name = 'events' AND sql NOT NULL")]
    columns = [name for _, name, *_ in hub.execute("PRAGMA table_info(events)") if name != "id"]
    rows = hub.execute(f"SELECT {', '.join(columns)} FROM events ORDER BY id").fetchall()
    (journal,) = hub.execute("PRAGMA journal_mode").fetchone()
    fresh = sqlite3.connect(target, isolation_level=None)
    fresh.execute(f"PRAGMA journal_mode = {journal}")
    fresh.execute("PRAGMA synchronous = FULL")
    for sql in schema:
        fresh.execute(sql)
    marks = ", ".join("?" * len(columns))
    insert = f"INSERT INTO events ({', '.join(columns)}) VALUES ({marks})"
    size = int(at_once)
    began = time.monotonic()
    for start in range(0, len(rows), size):
        fresh.execute("BEGIN IMMEDIATE")
        fresh.executemany(insert, rows[start : start + size])
        fresh.execute("COMMIT")
    print(json.dumps({"seconds": time.monotonic() - began, "rows": len(rows), "journal": journal}))


if __name__ == "__main__":
    main()
