"""Trains a small CNN on scikit-learn's handwritten digits with DistributedDataParallel and ddphub.

```
torchrun --standalone --nproc-per-node=2 scripts/train_digits.py
```

With DDPHUB_URL and DDPHUB_API_KEY the hub shows it; without a hub the run stays on disk.
"""

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits  # type: ignore[import-untyped]  # it ships no types
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import ddphub

HELD_OUT = 360
"""Digits that no rank trains on, of 1797."""


class DigitsCNN(nn.Module):
    """Two convolutions and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 2 * 2, 10),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Images of shape (batch, 1, 8, 8) to logits of shape (batch, 10)."""
        logits: Tensor = self.layers(images)
        return logits


def digits(seed: int) -> tuple[TensorDataset, TensorDataset]:
    """Training and held-out digits: images of shape (1, 8, 8) in 0 to 1, and their labels. The same on every rank."""
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    targets = torch.tensor(labels, dtype=torch.int64)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    train, held_out = order[HELD_OUT:], order[:HELD_OUT]
    return TensorDataset(images[train], targets[train]), TensorDataset(images[held_out], targets[held_out])


@torch.no_grad()
def accuracy_of(model: nn.Module, held_out: TensorDataset) -> float:
    """The share of the held-out digits that the model knows. All ranks, in step; each looks at its part."""
    images, targets = held_out.tensors
    mine = slice(dist.get_rank(), None, dist.get_world_size())
    right = (model(images[mine]).argmax(dim=1) == targets[mine]).sum()
    dist.all_reduce(right)  # every rank gets the same number, so every rank decides alike what is best
    return int(right) / len(targets)


def train(args: argparse.Namespace, run: ddphub.Run) -> None:
    """Trains until the last epoch, or until the hub asks to stop. All ranks, in step."""
    train_set, held_out = digits(args.seed)
    sampler: DistributedSampler[tuple[Tensor, ...]] = DistributedSampler(train_set, seed=args.seed)
    loader = DataLoader(train_set, batch_size=args.batch_size, sampler=sampler)
    model = DistributedDataParallel(DigitsCNN())
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    last = args.out / "last.pt"

    step, accuracy, best = 0, 0.0, 0.0
    for epoch in range(args.epochs):
        sampler.set_epoch(epoch)
        for images, targets in loader:
            loss = functional.cross_entropy(model(images), targets)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimizer.step()
            run.log({"train/loss": loss}, step=step, epoch=epoch)
            step += 1

        # DDP's forward may broadcast buffers; the bare module evaluates without talking to other ranks.
        accuracy = accuracy_of(model.module, held_out)
        if run.topology.rank == 0:
            run.log({"val/accuracy": accuracy}, step=step, epoch=epoch)
            print(f"epoch {epoch}: held-out accuracy {accuracy:.3f}", flush=True)
            state = {"model": model.module.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
            torch.save(state, last)
        metrics = {"accuracy": accuracy}
        run.save_checkpoint(last, epoch=epoch, kind="epoch", metrics=metrics)
        if accuracy > best:
            best = accuracy
            run.save_checkpoint(last, epoch=epoch, kind="best", name="best.pt", metrics=metrics)
        if run.should_stop():
            break
    else:
        if accuracy < args.min_accuracy:
            raise SystemExit(f"training did not learn: accuracy {accuracy:.3f} is below {args.min_accuracy}")
    run.save_checkpoint(last, step=step, kind="final", name="final.pt", metrics={"accuracy": accuracy})


def main() -> None:
    """One rank's work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(), help="folder for last.pt")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=32, help="images a rank and step")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--min-accuracy", type=float, default=0.0, help="fail when training ends below it")
    args = parser.parse_args()

    dist.init_process_group("gloo")
    torch.manual_seed(args.seed)
    # These checkpoints are small, so they may go out as fast as they come ("ckpt": 0 seconds apart).
    with ddphub.init(project="digits", name="cnn", config=vars(args), rate_limits={"ckpt": 0}) as run:
        train(args, run)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
