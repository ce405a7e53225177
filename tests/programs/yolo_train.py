"""Trains a detection model with the Ultralytics of its environment, the way its users do.

`--mode single` is one process and Ultralytics' own trainer. `--mode torchrun` is a rank of torchrun. `--mode launcher`
is one process that lets the trainer launch its workers, as `device=[0, 1]` does on GPUs.
"""

import argparse
import json
import os
from functools import partial
from pathlib import Path

import yolo_callbacks


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", required=True, help="a data.yaml")
    parser.add_argument("--mode", choices=["single", "torchrun", "launcher"], default="single")
    parser.add_argument("--workers", type=int, default=2, help="ranks that the trainer launches")
    parser.add_argument("--model", default=str(Path(__file__).with_name("yolo_tiny.yaml")))
    parser.add_argument("--resume", help="a last.pt of an interrupted training")
    parser.add_argument("--resume-from", type=Path, help="the same, fetched from the hub if it is not there")
    parser.add_argument("--attach", type=json.loads, help="settings of ddphub as JSON; without them it is not used")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=4, help="of all ranks together")
    parser.add_argument("--patience", type=int, default=100, help="epochs without progress that end the training")
    parser.add_argument("--save-period", type=int, default=-1, help="keep a checkpoint every so many epochs")
    parser.add_argument("--best-so-far", type=float, help="a fitness that the training will not reach")
    parser.add_argument("--raise-at-epoch", type=int)
    parser.add_argument("--raise-on-rank", type=int, default=0)
    parser.add_argument("--slow", type=float, default=0.0, help="seconds that each batch takes longer")
    args = parser.parse_args()
    if args.mode == "launcher":
        os.environ["GLOO_TRAINER_RANKS"] = str(args.workers)

    from ultralytics import YOLO

    last = args.resume
    if args.resume_from:
        from ddphub.integrations.ultralytics import resume_from

        last = resume_from(args.resume_from, **args.attach)
    model = YOLO(last or args.model)
    yolo_callbacks.add(model, args.out, args.raise_at_epoch, args.raise_on_rank, args.slow)
    if args.best_so_far is not None:
        model.add_callback("on_train_start", partial(yolo_callbacks.expect, args.best_so_far))
    if args.attach:
        from ddphub.integrations.ultralytics import attach

        attach(model, **args.attach)
    model.train(
        trainer=trainer(args.mode),
        resume=last is not None,
        data=args.data,
        epochs=args.epochs,
        batch=args.batch,
        patience=args.patience,
        save_period=args.save_period,
        imgsz=64,
        device="cpu",
        project=str(args.out),
        name="train",
        exist_ok=True,
        pretrained=False,
        amp=False,
        plots=False,
        deterministic=False,  # asking for it makes torch import its compiler, 1.6 s in each process
        # Every batch is a step of the optimizer, from the first one on.
        nbs=args.batch,
        warmup_epochs=0.0,
    )


def trainer(mode):
    """None is Ultralytics' own."""
    if mode == "single":
        return None
    from gloo_trainer import GlooTrainer

    return GlooTrainer


if __name__ == "__main__":
    main()
