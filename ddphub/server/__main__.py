"""`python -m ddphub.server`: a hub without the command line's comforts, for tests and service managers."""

import argparse
import os
import sys
from pathlib import Path

from ddphub.errors import DdphubError, SettingsError
from ddphub.server import ServerSettings, serve
from ddphub.server.settings import given_database_url


def main() -> int:
    """Serve as the arguments say; the API key comes from DDPHUB_API_KEY, never from an argument.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(prog="python -m ddphub.server")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--database-url", help="postgresql://USER@HOST/DATABASE; default: SQLite in --data")
    parser.add_argument("--host", default=ServerSettings.host)
    parser.add_argument("--port", type=int, default=ServerSettings.port)
    parser.add_argument("--part-size", type=int, default=ServerSettings.part_size, help="bytes")
    parser.add_argument("--heartbeat-s", type=float, default=ServerSettings.heartbeat_s)
    parser.add_argument("--stall-s", type=float, default=ServerSettings.stall_s)
    parser.add_argument("--first-step-s", type=float, default=ServerSettings.first_step_s)
    parser.add_argument("--storage", help="s3://bucket/prefix?endpoint=https://host&region=name")
    parser.add_argument("--url-lifetime-s", type=int, default=ServerSettings.url_lifetime_s)
    parser.add_argument("--inline-check-bytes", type=int, default=ServerSettings.inline_check_bytes)
    parser.add_argument("--new-admin-key", action="store_true", help="print one more key that can do everything")
    parser.add_argument("--tls-cert", type=Path, help="PEM file")
    parser.add_argument("--tls-key", type=Path, help="PEM file without a passphrase")
    parser.add_argument("--trusted-proxy", action="append", default=[], dest="trusted_proxies")
    parser.add_argument("--workers", type=int, default=ServerSettings.workers)
    parser.add_argument("--log-format", default=ServerSettings.log_format, help="text or json")
    parser.add_argument("--log-level", default=ServerSettings.log_level)
    parser.add_argument("--metrics-open", action="store_true")
    parser.add_argument("--rate-limit", type=float, default=ServerSettings.rate_limit)
    parser.add_argument("--max-requests", type=int, default=ServerSettings.max_requests)
    parser.add_argument("--max-connections", type=int, default=ServerSettings.max_connections)
    parser.add_argument("--receive-s", type=float, default=ServerSettings.receive_s)
    parser.add_argument("--shutdown-s", type=int, default=ServerSettings.shutdown_s)
    parser.add_argument("--drain-s", type=float, default=ServerSettings.drain_s)
    parser.add_argument("--upkeep-s", type=float, default=ServerSettings.upkeep_s)
    arguments = vars(parser.parse_args())
    arguments["trusted_proxies"] = tuple(arguments["trusted_proxies"])
    try:
        arguments["database_url"] = given_database_url(arguments["database_url"], os.environ)
        serve(ServerSettings(api_key=os.environ.get("DDPHUB_API_KEY"), **arguments))
    except DdphubError as error:
        sys.stderr.write(f"{error}\n")
        return 2 if isinstance(error, SettingsError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
