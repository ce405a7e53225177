"""A server for tuspy: the router of tuspyserver in an application, as its documentation has it.

    python tus_server.py tuspy FOLDER HOST

Prints its URL once it serves.
"""

import importlib
import os
import socket
import sys
from typing import Any


def main(_contestant: str, folder: str, host: str) -> None:
    """Serves until it is told to end."""
    app: Any = importlib.import_module("fastapi").FastAPI()
    app.include_router(importlib.import_module("tuspyserver").create_tus_router(prefix="files", files_dir=folder))
    uvicorn = importlib.import_module("uvicorn")
    with socket.create_server((host, 0)) as listener:
        print(f"http://{host}:{listener.getsockname()[1]}/files/", flush=True)
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # it prints, and nobody reads on
        config = uvicorn.Config(app, log_level="error", proxy_headers=False)
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main(*sys.argv[1:])
