"""The hub's certificate: checked when it starts, and loaded anew when it is told to."""

import ssl
import stat
from pathlib import Path


def wrong_certificate(certificate: Path, key: Path) -> tuple[str, str, str] | None:
    """What is wrong with the files of a certificate and its key.

    Returns:
        The setting's name, its value and what is expected; None when the hub can serve with them.
    """
    for name, path in (("tls_cert", certificate), ("tls_key", key)):
        try:
            mode = path.stat().st_mode
            path.read_bytes()
        except OSError as error:
            return name, str(path), f"cannot be read: {error.strerror}"
        # A group may have it: distributions keep keys for a group of services.
        if name == "tls_key" and mode & (stat.S_IRWXO | stat.S_IWGRP):
            return name, str(path), "others may read or change this key: chmod o=,g-w, and make a new one if they did"
    try:
        load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), certificate, key)
    except ValueError as error:
        return "tls_key", str(key), str(error)
    except ssl.SSLError as error:
        return "tls_cert", str(certificate), f"expected PEM files of a certificate and of its own key ({error.reason})"
    return None


def load(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Serve with these from the next connection on; connections that are open stay as they are.

    Raises:
        ValueError: the key has a passphrase.
        ssl.SSLError: the files do not fit each other, or are something else.
        OSError: a file cannot be read.
    """
    context.load_cert_chain(certificate, key, _no_passphrase)


def _no_passphrase() -> str:
    # Without this, OpenSSL would ask for it on the terminal.
    raise ValueError("the key has a passphrase; expected one without, which only the hub may read")
