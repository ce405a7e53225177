"""Trains the model of a HUB v1 URL with the Ultralytics of its environment, the way its users do.

Prints what the client made of the model, as JSON lines. Only the client's rate limits are set lower: it would send no
checkpoint of so short a run.
"""

import argparse
import json
import os
import time

import requests


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", required=True)
    parser.add_argument("--mode", choices=["single"])
    parser.add_argument("--model", required=True, help="a model's URL, or a model file with --data")
    parser.add_argument("--data", help="a data.yaml; without it the hub names one")
    parser.add_argument("--login", help="an API key for the trainer's settings")
    parser.add_argument("--die-at-epoch", type=int, help="end like a killed process once the hub has the last weights")
    args = parser.parse_args()
    os.chdir(args.out)  # 8.0.217 downloads into the current folder

    from ultralytics import YOLO
    from ultralytics.utils import SETTINGS

    if args.login:
        SETTINGS.update({"api_key": args.login})
    try:
        model = YOLO(args.model)
    except ValueError as error:
        say(refused=str(error))
        return
    say(loaded=str(model.ckpt_path or model.cfg), session=model.session is not None, task=model.task)
    if model.session is None and not args.data:
        return

    # The hub's arguments replace those of train().
    model.overrides.update(project=args.out, name="train", exist_ok=True, plots=False)

    def on_train_start(trainer):
        say(start_epoch=trainer.start_epoch, epochs=trainer.epochs, batch=trainer.batch_size, imgsz=trainer.args.imgsz)
        session = trainer.hub_session or model.session
        session.rate_limits.update(metrics=0, ckpt=0)
        say(model=session.model["id"] if isinstance(session.model, dict) else session.model.id)

    def on_train_epoch_start(trainer):
        if args.die_at_epoch == trainer.epoch:
            wait_for_hub(trainer.hub_session, trainer.epoch)
            os._exit(9)

    model.add_callback("on_train_start", on_train_start)
    model.add_callback("on_train_epoch_start", on_train_epoch_start)
    local = {"data": args.data, "epochs": 1, "batch": 4, "imgsz": 64, "device": "cpu"} if args.data else {}
    model.train(**local)
    say(best=str(model.trainer.best))


def wait_for_hub(session, epoch):
    """The client sends from threads that it does not wait for."""
    model_id = session.model["id"] if isinstance(session.model, dict) else session.model.id
    url = f"{os.environ['ULTRALYTICS_HUB_API']}/v1/models/{model_id}"
    key = {"x-api-key": os.environ["HUB_API_KEY"]}
    until = time.monotonic() + 60
    while time.monotonic() < until:
        sent = {one["epoch"] for one in requests.get(f"{url}/checkpoints", headers=key).json()["data"]}
        told = {one["epoch"] for one in requests.get(f"{url}/metrics", headers=key).json()["data"]}
        if sent == told == set(range(epoch)):
            return
        time.sleep(0.05)
    say(late=[sorted(sent), sorted(told)])


def say(**what):
    print("TOLD " + json.dumps(what), flush=True)


if __name__ == "__main__":
    main()
