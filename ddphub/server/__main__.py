"""`python -m ddphub.server`: a hub without the command line's comforts, for tests and service managers."""

import argparse
import os
import sys
from pathlib import Path

from ddphub.errors import SettingsError
from ddphub.server import ServerSettings, serve


def main() -> int:
    """Serve as the arguments say; the API key comes from DDPHUB_API_KEY, never from an argument.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(prog="python -m ddphub.server")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--host", default=ServerSettings.host)
    parser.add_argument("--port", type=int, default=ServerSettings.port)
    parser.add_argument("--part-size", type=int, default=ServerSettings.part_size, help="bytes")
    parser.add_argument("--heartbeat-s", type=float, default=ServerSettings.heartbeat_s)
    parser.add_argument("--stall-s", type=float, default=ServerSettings.stall_s)
    parser.add_argument("--first-step-s", type=float, default=ServerSettings.first_step_s)
    parser.add_argument("--url-lifetime-s", type=int, default=ServerSettings.url_lifetime_s)
    parser.add_argument("--inline-check-bytes", type=int, default=ServerSettings.inline_check_bytes)
    arguments = vars(parser.parse_args())
    try:
        serve(ServerSettings(api_key=os.environ.get("DDPHUB_API_KEY"), **arguments))
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
