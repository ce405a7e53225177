"""Reading metric values: what is a number is read now, all else is refused by one error."""

import decimal
import fractions
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from ddphub.distributed.scalars import UnreadableError, read_scalar

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2)
INTS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64)


def same(value, expected):
    """Equal, and of the same type."""
    return type(value) is type(expected) and (value == expected or (math.isnan(value) and math.isnan(expected)))


@pytest.mark.parametrize("value", [0, 1, -1, True, False, 0.0, 1.5, 1e308, 5e-324, math.inf, -math.inf, math.nan])
def test_a_plain_number_is_itself(value):
    """A bool stays one."""
    assert same(read_scalar(value), value)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_tensor_of_any_float_is_a_float(dtype):
    """1.5 is exact in each of them."""
    assert same(read_scalar(torch.tensor(1.5).to(dtype)), 1.5)


@pytest.mark.parametrize("dtype", INTS, ids=str)
def test_a_tensor_of_any_int_is_an_int(dtype):
    """Its largest value too, as a float where 64 bits do not hold it."""
    assert same(read_scalar(torch.tensor(7, dtype=dtype)), 7)
    most = torch.iinfo(dtype).max
    assert same(read_scalar(torch.tensor(most, dtype=dtype)), most if most < 2**63 else float(most))


def test_a_bool_tensor_is_a_bool():
    """And not 1."""
    assert read_scalar(torch.tensor(data=True)) is True


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_tensor_may_be_not_finite(value):
    """A diverged loss is a metric."""
    assert same(read_scalar(torch.tensor(value)), value)
    assert same(read_scalar(torch.tensor(value, dtype=torch.bfloat16)), value)


def test_a_loss_with_a_graph_is_read_without_it():
    """As training scripts pass it: not detached."""
    weight = torch.tensor(2.0, requires_grad=True)
    loss = weight * 3
    assert same(read_scalar(loss), 6.0)
    assert same(read_scalar(weight), 2.0)
    assert same(read_scalar(torch.nn.Parameter(torch.tensor(4.0))), 4.0)
    loss.backward()
    assert weight.grad.item() == 3.0


def test_a_tensor_is_read_now():
    """What is done to it in place afterwards does not change what was read."""
    loss = torch.tensor(1.0)
    read = read_scalar(loss)
    loss.zero_()
    assert read == 1.0
    array = np.array(1.0)
    read = read_scalar(array)
    array[...] = 0
    assert read == 1.0


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((dtype(1.5), 1.5) for dtype in (np.float16, np.float32, np.float64)),
        *((dtype(7), 7) for dtype in (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint64, np.intc)),
        (np.uint64(2**64 - 1), float(2**64 - 1)),
        (np.bool_(True), True),
        (np.float32("nan"), math.nan),
        (np.array(1.5), 1.5),
        (np.array(True), True),
    ],
    ids=lambda value: f"{type(value).__name__}",
)
def test_a_numpy_scalar_is_its_number(value, expected):
    """Also an array of shape ()."""
    assert same(read_scalar(value), expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (2**63 - 1, 2**63 - 1),
        (-(2**63) + 1, -(2**63) + 1),
        (2**63, float(2**63)),
        (-(2**63), -float(2**63)),
        (10**300, 1e300),
    ],
    ids=["largest", "smallest", "above", "below", "far above"],
)
def test_an_int_that_64_bits_do_not_hold_is_a_float(value, expected):
    """JSON numbers beyond 64 bits do not survive databases."""
    assert same(read_scalar(value), expected)


def test_a_number_of_a_class_of_its_own_is_a_plain_one():
    """An enum of ints, a float with a unit: JSON would show what its class says."""
    import enum

    class Level(enum.IntEnum):
        HIGH = 3

    class Seconds(float):
        def __repr__(self):
            return "many"

    assert same(read_scalar(Level.HIGH), 3)
    assert same(read_scalar(Seconds(1.5)), 1.5)


class Odd:
    """A thing with a shape like a scalar's and no value."""

    shape = ()

    def item(self):
        raise RuntimeError("there is no value")


REFUSED = {
    "none": None,
    "text": "1.5",
    "bytes": b"1",
    "complex": 1j,
    "decimal": decimal.Decimal("1.5"),
    "fraction": fractions.Fraction(1, 2),
    "list": [1.0],
    "dict": {},
    "object": object(),
    "type": float,
    "huge int": 10**400,
    "1-d": torch.tensor([1.0]),
    "2-d": torch.zeros(2, 3),
    "empty": torch.tensor([]),
    "complex tensor": torch.tensor(1j),
    "meta tensor": torch.tensor(1.0, device="meta"),
    "numpy 1-d": np.array([1.0]),
    "numpy text": np.array("1"),
    "numpy str": np.str_("1"),
    "numpy complex": np.complex64(1),
    "numpy datetime": np.datetime64("2020-01-01"),
    "numpy object": np.array(object(), dtype=object),
    "tensor class": torch.Tensor,
    "array class": np.ndarray,
    "item that fails": Odd(),
}


@pytest.mark.parametrize("value", REFUSED.values(), ids=REFUSED)
def test_what_is_no_scalar_is_refused(value):
    """By UnreadableError and nothing else, so that one value never costs those beside it."""
    with pytest.raises(UnreadableError) as raised:
        read_scalar(value)
    assert 0 < len(str(raised.value)) < 200


def test_a_refused_tensor_is_told_by_its_shape():
    """Who forgot `.mean()` sees it at once."""
    with pytest.raises(UnreadableError, match=r"Tensor of shape \(2, 3\)"):
        read_scalar(torch.zeros(2, 3))


def test_plain_numbers_need_no_torch():
    """Reading does not import it."""
    program = (
        "import sys; from ddphub.distributed.scalars import read_scalar; assert read_scalar(1.5) == 1.5; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=150)
