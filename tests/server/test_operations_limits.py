"""What one client may ask of a hub and what all may ask at once; and how slow they may be."""

import asyncio
import contextlib
import socket
import time
from functools import partial

import pytest
import requests
import uvicorn
from hub_talk import Talk, cut, problem
from jobs import wait_until

from ddphub.errors import HubUnavailable
from ddphub.hubs.ddphub import DdphubClient
from ddphub.server import connections
from ddphub.server.limits import BURST_S, Limits
from ddphub.server.meters import Meters

PART = 256 * 1024


def connect(hub):
    return socket.create_connection(("127.0.0.1", hub.port), timeout=30)


def said(connection):
    """What the hub sends until it closes the connection."""
    content = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := connection.recv(65536):
            content += chunk
    return content.decode()


def is_answered(connection):
    """Whether a whole answer comes to a request; the connection stays open."""
    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    content = b""
    while not content.endswith(b"}}"):
        content += connection.recv(65536)
    return content.startswith(b"HTTP/1.1 200")


# Rate ----------------------------------------------------------------------------------------------------------------


def test_a_client_that_asks_too_often_waits_as_long_as_it_is_told(start_hub):
    hub = start_hub(arguments=("--rate-limit", "5"))
    client = hub.client()
    answers = [client.get(f"{hub.url}/v1/capabilities") for _ in range(25)]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert 25 - BURST_S * 5 - 5 * 5 <= len(refused) <= 25 - BURST_S * 5
    assert problem(refused[0], 429)["request_id"] == refused[0].headers["x-request-id"]
    assert refused[0].headers["retry-after"] == "1"
    # Not what others ask, nor who watches.
    assert requests.get(f"{hub.url}/sign-in").status_code == 200
    assert {client.get(f"{hub.url}/healthz").status_code for _ in range(20)} == {200}
    # Our client says how long to wait, and whoever waits is let in.
    limited = DdphubClient(hub.url, hub.key)
    with pytest.raises(HubUnavailable) as caught:
        for _ in range(25):
            limited.check_key()
    limited.close()
    assert caught.value.retry_after == 1.0
    time.sleep(caught.value.retry_after)
    assert client.get(f"{hub.url}/v1/capabilities").status_code == 200


def test_buckets_fill_again_and_are_not_kept_for_ever(monkeypatch):
    now = 1000.0
    monkeypatch.setattr("ddphub.server.limits.time.monotonic", lambda: now)
    monkeypatch.setattr("ddphub.server.limits._CLIENTS", 3)
    limits = Limits(None, Meters(), rate=2.0, max_requests=1)

    def asks(address="10.0.0.1", **headers):
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        return limits._wait({"type": "http", "client": (address, 1), "headers": raw})

    assert [asks() for _ in range(5)] == [0, 0, 0, 0, 0.5]
    assert asks("10.0.0.2") == 0
    now += 0.5
    assert [asks(), asks()] == [0, 0.5]
    assert [asks(authorization="Bearer a") for _ in range(4)] == [0] * 4
    assert asks(authorization="bearer    a") == 0.5
    assert [asks("10.9.9.9", authorization="Bearer a"), asks("10.0.0.1", authorization="Bearer b")] == [0.5, 0]
    # Neighbours in one IPv6 network are one client.
    assert [asks("2001:db8::1"), asks("2001:db8::2"), asks("2001:db8::3"), asks("2001:db8::4")] == [0] * 4
    assert asks("2001:db8::5") == 0.5
    assert len(limits._buckets) == 3


# At once -------------------------------------------------------------------------------------------------------------


def test_more_requests_than_it_can_answer_are_turned_away_and_health_is_not(start_hub):
    hub = start_hub(arguments=("--max-requests", "2", "--part-size", str(PART)))
    talk = Talk(hub)
    content = b"x" * PART
    url = talk.begin({"a": content}, part_size=PART)["missing"][0]["parts"][0]["url"]
    head = f"POST /v1/models HTTP/1.1\r\nHost: x\r\nX-Api-Key: {hub.key}\r\nContent-Length: 9\r\n\r\n"
    with connect(hub) as one, contextlib.ExitStack() as stack:
        one.sendall(f"PUT {url} HTTP/1.1\r\nHost: x\r\nContent-Length: {PART}\r\n\r\n".encode())

        def is_full():
            stack.enter_context(connect(hub)).sendall(head.encode())
            time.sleep(0.05)  # a question that comes first is itself one too many
            return talk.http.get(f"{hub.url}/v1/capabilities").status_code == 503

        Talk.wait_until(is_full)
        answer = talk.http.get(f"{hub.url}/v1/capabilities")
        problem(answer, 503)
        assert answer.headers["retry-after"] == "1"
        assert requests.get(f"{hub.url}/healthz").status_code == 200
        assert requests.get(f"{hub.url}/readyz").status_code == 200
        one.sendall(content)
        assert one.recv(12) == b"HTTP/1.1 200"
        stack.close()
        Talk.wait_until(lambda: talk.http.get(f"{hub.url}/v1/capabilities").status_code == 200)


def test_parts_have_half_of_the_requests_in_progress(start_hub):
    """Runs that send checkpoints over many connections do not hold up the signs of life of others."""
    hub = start_hub(arguments=("--max-requests", "4", "--part-size", str(PART)))
    talk = Talk(hub)
    data = talk.begin({name: name.encode() * PART for name in "abc"}, part_size=PART)
    urls = [file["parts"][0]["url"] for file in data["missing"]]
    with connect(hub) as one, connect(hub) as two:
        for connection, url in zip((one, two), urls, strict=False):
            connection.sendall(f"PUT {url} HTTP/1.1\r\nHost: x\r\nContent-Length: {PART}\r\n\r\n".encode())
        Talk.wait_until(lambda: len(list((hub.data_dir / "incoming").iterdir())) == 2)
        answer = talk.put(urls[2], b"c" * PART)
        problem(answer, 503)
        assert answer.headers["retry-after"] == "1"
        assert talk.get() is not None
    Talk.wait_until(lambda: talk.put(urls[2], b"c" * PART).status_code == 200)


def test_one_key_has_half_of_the_requests_in_progress(start_hub):
    hub = start_hub(arguments=("--max-requests", "4"))
    other = hub.client()
    made = other.post(f"{hub.url}/v1/keys", json={"name": "slow", "role": "reader"}).json()["data"]["key"]
    head = f"POST /v1/models HTTP/1.1\r\nHost: x\r\nX-Api-Key: {made}\r\nContent-Length: 9\r\n\r\n"
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(connect(hub)).sendall(head.encode())
        slow = {"x-api-key": made}
        Talk.wait_until(lambda: requests.get(f"{hub.url}/v1/models", headers=slow).status_code == 503)
        assert other.get(f"{hub.url}/v1/models").status_code == 200
    Talk.wait_until(lambda: requests.get(f"{hub.url}/v1/models", headers=slow).status_code == 200)


def test_who_signs_in_slowly_holds_up_nobody_who_has_a_key(start_hub):
    hub = start_hub(arguments=("--max-requests", "30"))
    head = b"POST /sign-in HTTP/1.1\r\nHost: x\r\nContent-Length: 4000\r\n\r\nkey="
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connect(hub)) for _ in range(40)]
        for connection in slow:
            connection.sendall(head)
        # More than so many are turned away, so that these are there now.
        Talk.wait_until(lambda: requests.post(f"{hub.url}/sign-in", data={"key": "x"}).status_code == 503)
        assert hub.client().get(f"{hub.url}/v1/models").status_code == 200
        assert slow[0].recv(12) == b"HTTP/1.1 408"
    answer = requests.post(f"{hub.url}/sign-in", data={"key": hub.key}, allow_redirects=False)
    assert answer.headers["location"] == "/"


def test_more_connections_than_it_can_have_are_told_so_and_closed(start_hub):
    hub = start_hub(arguments=("--max-connections", "3"))
    with contextlib.ExitStack() as stack:
        kept = [stack.enter_context(connect(hub)) for _ in range(3)]
        late = stack.enter_context(connect(hub))
        late.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = said(late)
        assert answer.startswith("HTTP/1.1 503 ")
        assert "retry-after: 5\r\n" in answer
        assert '"status":503' in answer
        assert is_answered(kept[0])
        kept[1].close()
        Talk.wait_until(lambda: requests.get(f"{hub.url}/healthz").status_code == 200)


# Slow ----------------------------------------------------------------------------------------------------------------


def dribble(connection, content, pause, seconds):
    """Sends a byte now and then; how long until the hub had enough of it, None if it had not."""
    began = time.monotonic()
    connection.settimeout(pause)
    for byte in content:
        try:
            connection.sendall(bytes([byte]))
            if connection.recv(65536) == b"":
                return time.monotonic() - began
        except TimeoutError:
            pass
        except OSError:
            return time.monotonic() - began
        if time.monotonic() - began > seconds:
            return None
    return None


def test_slow_senders_are_cut(start_hub):
    hub = start_hub(arguments=("--receive-s", "1", "--part-size", str(PART)))
    talk = Talk(hub)
    data = talk.begin({"a": b"x" * PART}, part_size=PART)
    url = data["missing"][0]["parts"][0]["url"]
    head = f"PUT {url} HTTP/1.1\r\nHost: x\r\nContent-Length: {PART}\r\n\r\n".encode()
    with connect(hub) as silent, connect(hub) as second:
        began = time.monotonic()
        assert is_answered(second)
        assert said(silent) == ""
        assert 0.9 < time.monotonic() - began < 10
        # One that has asked and is quiet now is not slow; half of another request is.
        assert is_answered(second)
        assert dribble(second, b"GET /healthz HTTP/1.1\r\n" * 20, 0.2, 10) is not None
    with connect(hub) as slow_head:
        assert dribble(slow_head, b"GET /" + b"x" * 1000, 0.2, 10) is not None
    with connect(hub) as slow_body:
        slow_body.sendall(head)
        assert dribble(slow_body, b"x" * 1000, 0.2, 10) is not None
    with connect(hub) as unwanted:
        # Answered before its body came; it cannot go on for ever with that.
        unwanted.sendall(b"POST /v1/models HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
        assert unwanted.recv(12) == b"HTTP/1.1 401"
        assert dribble(unwanted, b"x" * 1000, 0.2, 10) is not None
    wait_until(lambda: hub.log.read_text().count("cut the connection of 127.0.0.1: ") == 5, what="the log")
    assert 'ddphub_refused_total{limit="slow"} 5.0' in talk.http.get(f"{hub.url}/metrics").text


def test_a_steady_sender_may_take_its_time(start_hub):
    """Three times as long as a head may take, at a few kilobytes a second."""
    hub = start_hub(arguments=("--receive-s", "1", "--part-size", str(PART)))
    talk = Talk(hub)
    content = b"x" * PART
    data = talk.begin({"a": content}, part_size=PART)
    url = data["missing"][0]["parts"][0]["url"]
    with connect(hub) as steady:
        steady.sendall(f"PUT {url} HTTP/1.1\r\nHost: x\r\nContent-Length: {PART}\r\n\r\n".encode())
        pieces = cut(content, PART // 16)
        for piece in pieces:
            steady.sendall(piece)
            time.sleep(0.2)
        assert steady.recv(12) == b"HTTP/1.1 200"


def test_who_does_not_read_an_answer_is_cut(monkeypatch):
    """In this process, as the time that the hub gives is long."""
    monkeypatch.setattr(connections, "SEND_S", 0.5)
    meters = Meters()

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(20):
            await send({"type": "http.response.body", "body": b"x" * 1_000_000, "more_body": True})

    async def main():
        protocol = partial(connections.HubConnection, meters=meters, receive_s=5.0, max_connections=10)
        config = uvicorn.Config(app, http=protocol, ws="none", log_config=None, lifespan="off", port=0)
        server = uvicorn.Server(config)
        config.load()
        server.lifespan = config.lifespan_class(config)
        await server.startup()
        port = server.servers[0].sockets[0].getsockname()[1]
        _reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1000)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        began = time.monotonic()
        while "slow" not in meters.text().decode() or server.server_state.connections:
            assert time.monotonic() - began < 20
            await asyncio.sleep(0.05)
        writer.close()
        await server.shutdown()

    asyncio.run(main())
    assert 'ddphub_refused_total{limit="slow"} 1.0' in meters.text().decode()
