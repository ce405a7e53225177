"""What every process of a trainer under test has: modules that fit each other, and no way out of this machine.

Python imports a sitecustomize of the path at its start, so a process that the trainer launches itself has it too.
"""

import importlib.abc
import importlib.machinery
import socket
import sys


def declare_operators(extension):
    """Lets torchvision be imported beside a torch that its compiled operators do not fit.

    PyPI's torchvision is built for CUDA and cannot be loaded by a CPU build of torch. Its import then stops at two
    operators that it expects to exist; detection calls one of them, nms.
    """
    if extension._has_ops():
        return
    import torch

    def nms(boxes, scores, iou_threshold):
        order = scores.argsort(descending=True)
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        kept = []
        while order.numel():
            best, order = order[0], order[1:]
            kept.append(best)
            low = torch.maximum(boxes[order, :2], boxes[best, :2])
            high = torch.minimum(boxes[order, 2:], boxes[best, 2:])
            overlap = (high - low).clamp(min=0).prod(1)
            order = order[overlap <= iou_threshold * (areas[order] + areas[best] - overlap)]
        return torch.stack(kept) if kept else order

    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.impl("nms", nms, "CPU")
    extension.operators = library  # a library that is collected takes its operators with it
    extension._assert_has_ops = lambda: None


def bring_back_trapz(numpy):
    """8.0.217 integrates with np.trapz, which is np.trapezoid since NumPy 2 and gone under its old name since 2.4."""
    if not hasattr(numpy, "trapz"):
        numpy.trapz = numpy.trapezoid


AFTER = {"numpy": bring_back_trapz, "torchvision.extension": declare_operators}


class Finder(importlib.abc.MetaPathFinder):
    """Does something to a module once it is imported; costs nothing in a process that never does."""

    def find_spec(self, fullname, path, target=None):
        if fullname not in AFTER:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            AFTER[fullname](module)

        spec.loader.exec_module = exec_module
        return spec


def connect(self, address, _connect=socket.socket.connect):
    """Refuses at once what a test must not reach: 8.0.217 asks three name servers whether it is online."""
    local = self.family not in {socket.AF_INET, socket.AF_INET6} or address[0] in {"127.0.0.1", "::1", "localhost"}
    if not local:
        raise ConnectionRefusedError(f"a trainer under test may only connect to this machine, not to {address[0]}")
    return _connect(self, address)


sys.meta_path.insert(0, Finder())
socket.socket.connect = connect
