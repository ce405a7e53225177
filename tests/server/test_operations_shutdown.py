"""The end of a hub that is asked to stop: what is in progress ends, and nothing that was acknowledged is lost."""

import signal
import socket
import threading
import time

import requests
from hub_talk import Talk, metrics_event, new_id, problem

PART = 64 * 1024


class Sender(threading.Thread):
    """Sends events, one a request, until the hub takes no more; `acknowledged` are those that it has."""

    def __init__(self, talk):
        super().__init__(daemon=True)
        self._talk = talk
        self.attempt_id = new_id()
        self.acknowledged = []
        self.statuses = set()

    def run(self):
        http = self._talk.hub.client()
        for seq in range(100_000):
            try:
                answer = http.post(self._talk.url("/events"), json=[metrics_event(self.attempt_id, seq)])
            except requests.ConnectionError:
                return
            self.statuses.add(answer.status_code)
            if answer.status_code == 200:
                self.acknowledged.append(seq)


def test_a_stop_under_load_ends_with_code_0_and_all_that_was_acknowledged(start_hub):
    hub = start_hub(arguments=("--part-size", str(PART)))
    talk = Talk(hub)
    data = talk.begin({"a": b"x" * PART})
    url = data["missing"][0]["parts"][0]["url"]
    senders = [Sender(talk) for _ in range(8)]
    with socket.create_connection(("127.0.0.1", hub.port)) as upload:
        upload.sendall(f"PUT {url} HTTP/1.1\r\nHost: x\r\nContent-Length: {PART}\r\n\r\n".encode())
        upload.sendall(b"x" * 1000)
        for sender in senders:
            sender.start()
        Talk.wait_until(lambda: all(len(sender.acknowledged) > 5 for sender in senders))
        began = time.monotonic()
        hub._process.send_signal(signal.SIGTERM)
        for sender in senders:
            sender.join()
        # The upload was in progress: it has its time, and its answer.
        upload.sendall(b"x" * (PART - 1000))
        assert upload.recv(12) == b"HTTP/1.1 200"
    assert hub.stop() == 0
    took = time.monotonic() - began
    count = sum(len(sender.acknowledged) for sender in senders)
    print(f"stopped {took:.2f} s after SIGTERM, {count} events acknowledged")
    assert took < 10
    hub.restart()
    for sender in senders:
        assert sender.statuses <= {200, 503}
        assert talk.accepted(*(metrics_event(sender.attempt_id, seq) for seq in sender.acknowledged))["accepted"] == 0
    assert talk.get(f"/checkpoints/{data['id']}")["missing"] == []


def test_what_does_not_end_in_time_is_told_to_try_again(start_hub):
    hub = start_hub(arguments=("--part-size", str(PART), "--shutdown-s", "1"))
    talk = Talk(hub)
    url = talk.begin({"a": b"x" * PART})["missing"][0]["parts"][0]["url"]
    with socket.create_connection(("127.0.0.1", hub.port), timeout=30) as upload:
        upload.sendall(f"PUT {url} HTTP/1.1\r\nHost: x\r\nContent-Length: {PART}\r\n\r\n".encode())
        Talk.wait_until(lambda: list((hub.data_dir / "incoming").iterdir()))
        assert hub.stop() == 0
        answer = upload.recv(65536).decode()
    assert answer.startswith("HTTP/1.1 503 ")
    assert "retry-after: 1\r\n" in answer
    assert "Traceback" not in hub.log.read_text()
    hub.restart()
    assert talk.get("/checkpoints") == []


def test_a_hub_that_will_stop_says_so_first_and_serves_on(start_hub):
    hub = start_hub(arguments=("--drain-s", "2", "--log-format", "json"))
    with hub.client() as client:
        assert client.get(f"{hub.url}/readyz").status_code == 200
        hub._process.send_signal(signal.SIGTERM)
        Talk.wait_until(lambda: client.get(f"{hub.url}/readyz").status_code == 503)
        assert problem(client.get(f"{hub.url}/readyz"), 503)["parts"]["hub"] == "stopping"
        assert requests.get(f"{hub.url}/healthz").status_code == 200
        assert Talk(hub).accepted() == {"accepted": 0, "duplicates": 0, "stop": False}
    assert hub.stop() == 0
    try:
        requests.get(f"{hub.url}/healthz")
    except requests.ConnectionError:
        return
    raise AssertionError("it takes connections")


def test_a_person_who_presses_ctrl_c_twice_does_not_wait(start_hub):
    hub = start_hub(arguments=("--drain-s", "600", "--shutdown-s", "600"))
    with socket.create_connection(("127.0.0.1", hub.port)) as half:
        half.sendall(b"POST /sign-in HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n")
        assert requests.get(f"{hub.url}/healthz").status_code == 200
        hub._process.send_signal(signal.SIGINT)
        Talk.wait_until(lambda: requests.get(f"{hub.url}/readyz").status_code == 503)
        hub._process.send_signal(signal.SIGINT)
        assert hub.stop() == 0
