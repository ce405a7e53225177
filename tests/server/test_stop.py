"""A request to stop means the attempt that ran when it was made."""

import time

import ddphub


def begin(hub, tmp_path, mode="online"):
    where = {"dir": tmp_path, "hub": hub.url, "api_key": hub.key, "mode": mode}
    return ddphub.init(project="stops", name="net", run_id="run", finish_timeout=20, **where)


def test_a_run_that_was_stopped_and_started_again_goes_on(start_hub, tmp_path):
    hub = start_hub()
    with begin(hub, tmp_path) as run:
        model_id = run.model_id
        hub.client().post(f"{hub.url}/v1/models/{model_id}/stop")
        until = time.monotonic() + 20
        while not run.should_stop() and time.monotonic() < until:
            run.log({"loss": 1.0})
            time.sleep(0.05)
        assert run.should_stop()
    with begin(hub, tmp_path) as run:
        assert run.model_id == model_id
        for _ in range(20):
            run.log({"loss": 1.0})
            time.sleep(0.05)
        assert not run.should_stop()
    shown = hub.client().get(f"{hub.url}/v1/models/{model_id}").json()["data"]
    assert shown["stop_requested"] is False
    assert [one["state"] for one in shown["attempts"]] == ["stopped", "finished"]
    assert (shown["attempts"][0]["reason"], shown["status"]) == ("the hub asked it to stop", "trained")


def test_what_the_attempt_before_left_undelivered_does_not_stop_the_next(start_hub, tmp_path):
    hub = start_hub()
    body = {"project": "stops", "meta": {"name": "net"}}
    answer = hub.client().post(f"{hub.url}/v1/models", json=body, headers={"Idempotency-Key": "run"})
    with begin(hub, tmp_path, "offline") as run:
        run.log({"loss": 1.0})
    hub.client().post(f"{hub.url}/v1/models/{answer.json()['data']['id']}/stop")
    with begin(hub, tmp_path) as run:
        for _ in range(20):
            run.log({"loss": 1.0})
            time.sleep(0.05)
        assert not run.should_stop()
