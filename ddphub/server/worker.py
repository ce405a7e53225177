"""`python -m ddphub.server.worker SOCKET`: one of the processes that serve a hub, see workers."""

import os
import signal
import socket
import sys
import threading
from typing import cast

from ddphub.errors import SettingsError
from ddphub.server.hub import Hub
from ddphub.server.logs import HubLog
from ddphub.server.serving import serve_hub
from ddphub.server.settings import ServerSettings
from ddphub.server.workers import READY


def main() -> int:
    """Serve until a signal says to stop, or the parent is gone.

    Returns:
        The exit code.
    """
    # Until it can load its certificate anew it need not.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    settings = ServerSettings.from_json(sys.stdin.buffer.readline())
    listener = socket.socket(fileno=int(sys.argv[1]))
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    with HubLog(settings.log_format, settings.log_level):
        try:
            hub = Hub.open(settings, first=False)
        except SettingsError as error:
            sys.stderr.write(f"{error}\n")
            return 2
        serve_hub(hub, listener, lambda: cast("None", os.write(sys.stdout.fileno(), READY)))
    return 0


def _end_with_parent() -> None:
    # Not the buffered file: a thread that holds its lock at the end makes Python abort.
    os.read(sys.stdin.fileno(), 1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
