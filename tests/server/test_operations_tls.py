"""Serving https, and standing behind a proxy."""

import datetime as dt
import hashlib
import ipaddress
import os
import signal
import ssl
import time
from pathlib import Path

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hub_talk import Talk, metrics_event
from jobs import Job
from test_operations import log_lines

from ddphub.errors import SettingsError
from ddphub.server.limits import BURST_S
from ddphub.server.proxies import TrustedProxies
from ddphub.server.settings import ServerSettings


def make_certificate(folder, name="hub", passphrase=None):
    """A certificate for 127.0.0.1 that signs itself: the paths of it and of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    hosts = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / f"{name}.pem", folder / f"{name}.key"
    secret = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    pem = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, secret
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(key.private_bytes(*pem))
    paths[1].chmod(0o600)
    return paths


def digest_of(port):
    """Of the certificate that is shown to who connects."""
    return hashlib.sha256(ssl.get_server_certificate(("127.0.0.1", port)).encode()).hexdigest()


def test_a_run_reports_over_tls_to_a_hub_that_keeps_it_waiting(tmp_path, start_hub):
    """It is told 429 again and again, and trains, delivers all and ends well; then the certificate is renewed."""
    certificate, key = make_certificate(tmp_path)
    serving = ("--tls-cert", str(certificate), "--tls-key", str(key), "--rate-limit", "2", "--log-format", "json")
    hub = start_hub(arguments=("--part-size", "65536", *serving))
    assert hub.url.startswith("https://127.0.0.1:")
    job = Job(tmp_path, "train.py", hub=hub, ranks=2, environment={"REQUESTS_CA_BUNDLE": str(certificate)})
    assert job.wait() == 0, job.text
    assert '"status": 429' in hub.log.read_text()
    time.sleep(BURST_S)
    client = hub.client()
    client.verify = str(certificate)
    (model,) = client.get(f"{hub.url}/v1/models").json()["data"]["results"]
    assert (model["state"], "NOT delivered" in job.text) == ("finished", False)
    assert client.get(f"{hub.url}/v1/models/{model['id']}").json()["data"]["resume"].startswith("https://")
    signed_in = client.post(f"{hub.url}/sign-in", data={"key": hub.key}, allow_redirects=False)
    assert "; secure" in signed_in.headers["set-cookie"].lower()
    with pytest.raises(requests.exceptions.SSLError):
        requests.get(f"{hub.url}/healthz")
    with pytest.raises(requests.exceptions.ConnectionError):
        requests.get(f"http://127.0.0.1:{hub.port}/healthz")

    before = digest_of(hub.port)
    for path, new in zip((certificate, key), make_certificate(tmp_path, "renewed"), strict=True):
        new.replace(path)
    os.kill(hub.pid, signal.SIGHUP)
    Talk.wait_until(lambda: digest_of(hub.port) != before)
    now = digest_of(hub.port)
    key.write_text("no key")
    os.kill(hub.pid, signal.SIGHUP)
    Talk.wait_until(lambda: "the certificate is not loaded anew, the one before stays" in hub.log.read_text())
    assert digest_of(hub.port) == now


def test_certificates_that_cannot_serve_are_told_at_the_start(tmp_path):
    certificate, key = make_certificate(tmp_path)
    _, other = make_certificate(tmp_path, "other")
    secret_certificate, secret = make_certificate(tmp_path, "secret", b"passphrase")
    open_key = tmp_path / "open.key"
    open_key.write_bytes(key.read_bytes())
    open_key.chmod(0o604)
    for wrong, field, words in (
        ({"tls_cert": certificate}, "tls_key", "both files"),
        ({"tls_key": key}, "tls_cert", "both files"),
        ({"tls_cert": certificate, "tls_key": tmp_path / "none"}, "tls_key", "cannot be read"),
        ({"tls_cert": tmp_path / "none", "tls_key": key}, "tls_cert", "cannot be read"),
        ({"tls_cert": certificate, "tls_key": other}, "tls_cert", "its own key"),
        ({"tls_cert": key, "tls_key": key}, "tls_cert", "its own key"),
        ({"tls_cert": certificate, "tls_key": open_key}, "tls_key", "others may read"),
        ({"tls_cert": secret_certificate, "tls_key": secret}, "tls_key", "passphrase"),
    ):
        with pytest.raises(SettingsError, match=words) as caught:
            ServerSettings(data=tmp_path / "data", **wrong)
        assert caught.value.field == field
        assert "PRIVATE" not in str(caught.value)
    key.chmod(0o640)
    ServerSettings(data=tmp_path / "data", tls_cert=certificate, tls_key=key)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("trusted_proxies", ("10.0.0.1/8",)),
        ("trusted_proxies", ("proxy.example",)),
        ("log_format", "xml"),
        ("log_level", "loud"),
        ("rate_limit", -1),
        ("rate_limit", float("nan")),
        ("max_requests", 0),
        ("max_connections", 0),
        ("receive_s", 0),
        ("drain_s", -1),
        ("workers", 0),
        ("workers", 2),
    ],
)
def test_a_wrong_setting_of_serving_is_refused(field, value):
    with pytest.raises(SettingsError) as caught:
        ServerSettings(data=Path("unused"), **{field: value})
    assert caught.value.field == field


# Proxies -------------------------------------------------------------------------------------------------------------


def test_what_a_named_proxy_says_is_believed_and_nobody_else(start_hub):
    said = {
        "X-Forwarded-For": "203.0.113.9, 198.51.100.7",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "hub.example.org",
    }
    named = start_hub(arguments=("--trusted-proxy", "127.0.0.0/8", "--log-format", "json"))
    other = start_hub("other", arguments=("--trusted-proxy", "10.0.0.0/8", "--log-format", "json"))
    for hub, scheme, client in ((named, "https", "198.51.100.7"), (other, "http", "127.0.0.1")):
        talk = Talk(hub)
        talk.accepted(metrics_event(talk.attempt_id, 0))
        origin = "https://hub.example.org" if hub is named else hub.url
        shown = talk.get(headers=said)
        assert shown["resume"] is None or shown["resume"].startswith(origin)
        answer = requests.post(
            f"{hub.url}/sign-in", data={"key": hub.key}, headers={**said, "Origin": origin}, allow_redirects=False
        )
        assert answer.status_code == 303
        assert ("; secure" in answer.headers["set-cookie"].lower()) == (scheme == "https")
        foreign = {**said, "Origin": "https://elsewhere.example.org"}
        assert requests.post(f"{hub.url}/sign-in", data={"key": hub.key}, headers=foreign).status_code == 403
        requests.get(f"{hub.url}/v1/models", headers=said)
        line = log_lines(hub, "/sign-in")[0]
        assert line["client"] == client


@pytest.mark.parametrize(
    ("client", "forwarded", "address"),
    [
        ("10.0.0.1", ["203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["1.1.1.1, 203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["1.1.1.1", "203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["203.0.113.9, 10.0.0.2"], "203.0.113.9"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("10.0.0.1", ["203.0.113.9:4711"], "203.0.113.9"),
        ("10.0.0.1", ["[2001:db8::1]:4711"], "2001:db8::1"),
        ("10.0.0.1", ["203.0.113.9, evil\nline"], "10.0.0.1"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("::ffff:10.0.0.1", ["203.0.113.9"], "203.0.113.9"),
        ("10.0.1.1", ["203.0.113.9"], "10.0.1.1"),
        ("fd00::1", ["203.0.113.9"], "203.0.113.9"),
        ("", ["203.0.113.9"], ""),
    ],
)
def test_the_client_is_the_last_hop_that_is_no_proxy_of_ours(client, forwarded, address):
    seen = {}

    async def app(scope, receive, send):
        seen.update(scope)

    headers = [(b"x-forwarded-for", hop.encode()) for hop in forwarded] + [(b"x-forwarded-proto", b"javascript")]
    scope = {"type": "http", "client": (client, 1), "scheme": "http", "headers": headers}
    with pytest.raises(StopIteration):
        TrustedProxies(app, ("10.0.0.0/24", "fd00::/8"))(scope, None, None).send(None)
    assert seen["client"][0] == address
    assert (seen["scheme"], seen["headers"]) == ("http", [])
