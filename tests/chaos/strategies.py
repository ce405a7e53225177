"""How long the property tests take, and the JSON that nobody should send.

They run the same examples every time. `CHAOS_EXAMPLES=50` runs 50 times as many, random ones.
"""

import json
import os

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

FACTOR = int(os.environ.get("CHAOS_EXAMPLES", "0"))

NASTY_TEXTS = (
    *("", " ", ".", "..", "../../etc/passwd", "/etc/passwd", "a/../b", "a\\b", "a\0b", "\ud800", "\udcff", "\u202e"),
    *("é", "😀", "e\u0301", "\n", "\x1b[2J", "NaN", "Infinity", "null", "'; DROP TABLE models; --", "%00", "{{7*7}}"),
    *("x" * 129, "x" * 5000, "0" * 32, "0" * 31, "g" * 32, "A" * 32, "a" * 64, "-1", "1e400", "<script>"),
)
NASTY_NUMBERS = (
    *(0, -1, 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64, 10**30, 10**4000),
    *(0.0, -0.0, 1.5, 1e300, -1e300, 5e-324, 253_402_300_799.99997, 253_402_300_800.0),
    *(float("nan"), float("inf"), float("-inf")),
)


def budget(max_examples: int, steps: int = 50) -> settings:
    """The settings of one test; `max_examples` in the ordinary suite."""
    return settings(
        max_examples=max_examples * max(1, FACTOR),
        stateful_step_count=steps,
        derandomize=not FACTOR,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
        # Explaining a failure runs it many times more, which a hub's disk makes slow.
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
    )


def nested(depth: int, value: object = 1) -> object:
    """`value` inside `depth` lists and objects."""
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


texts = st.one_of(
    st.sampled_from(NASTY_TEXTS), st.text(max_size=20), st.text(st.characters(categories=["Cs", "Cc", "L"]), max_size=5)
)
numbers = st.one_of(st.sampled_from(NASTY_NUMBERS), st.integers(), st.floats())
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
values = st.recursive(
    scalars | st.builds(nested, st.sampled_from([5, 17, 40])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
"""Any JSON value, and some that JSON does not have (NaN)."""


@st.composite
def mutations(draw, valid):
    """A JSON value with one to three of its parts replaced, dropped or added."""
    value = json.loads(json.dumps(valid))
    for _ in range(draw(st.integers(1, 3))):
        value = _mutate(draw, value)
    return value


def _mutate(draw, value):
    inner = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    action = draw(st.sampled_from(["descend", "descend", "descend", "replace", "drop", "add"]))
    if action == "replace" or not inner:
        return draw(values)
    key = draw(st.sampled_from(inner))
    if action == "descend":
        value[key] = _mutate(draw, value[key])
    elif action == "drop":
        del value[key]
    elif isinstance(value, dict):
        value[draw(texts)] = draw(values)
    else:
        value.insert(key, draw(st.one_of(values, st.just(value[key]))))
    return value
