"""A Lightning training that reports its steps; which of the two takes SIGTERM first is an option."""

import argparse
import logging
import os
import time
from pathlib import Path

import pytorch_lightning as pl
import torch

import ddphub

logging.getLogger("pytorch_lightning").setLevel(logging.INFO)
parser = argparse.ArgumentParser()
parser.add_argument("--out", type=Path, required=True)
parser.add_argument("--first", choices=["ddphub", "lightning"], required=True)
arguments = parser.parse_args()


class Net(pl.LightningModule):
    """One layer; reports each step."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.run = init() if arguments.first == "ddphub" else None

    def on_train_start(self):
        self.run = self.run or init()
        (arguments.out / "pid-0").write_text(str(os.getpid()))

    def training_step(self, batch, index):
        loss = self.layer(batch[0]).square().mean()
        self.run.log({"loss": loss}, step=self.global_step)
        time.sleep(0.02)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def init():
    return ddphub.init(project="tests", name="lightning", rate_limits={"ckpt": 0, "metrics": 0.2})


data = torch.utils.data.TensorDataset(torch.randn(10_000, 2))
trainer = pl.Trainer(
    accelerator="cpu",
    max_epochs=10,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    default_root_dir=arguments.out,
)
try:
    trainer.fit(Net(), torch.utils.data.DataLoader(data, batch_size=1))
finally:
    print("LIGHTNING LEAVES", trainer.received_sigterm, flush=True)
