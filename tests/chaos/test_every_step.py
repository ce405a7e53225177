"""A sample of the crash points of `scripts/chaos --every-step`, and a proof that it would find a defect."""

import needs
import pytest

from chaos import every_step, every_step_calls


@pytest.fixture(autouse=True)
def _stoppable():
    if reason := every_step_calls.missing():
        needs.without(reason)


@pytest.mark.parametrize("part", range(3))
def test_a_process_killed_at_any_step_loses_doubles_and_tears_nothing(part, tmp_path):
    """Two points of each scenario, the same ones each time."""
    from chaos.scenarios import SCENARIOS

    names = list(SCENARIOS)[part::3]
    results = every_step.sample(names, 2, tmp_path)
    killed = [result for result in results if result.killed_at]
    assert {result.scenario for result in killed} == set(names)
    assert len(killed) >= 1.5 * len(names)  # threads do not make the same number of calls each time
    wrong = [(one.scenario, one.number, one.killed_at, one.problem) for one in results if one.problem]
    assert not wrong


def test_a_planted_defect_is_found(tmp_path):
    """Bytes deleted before the hub or the receipt has them, run.json written in place, a hub that commits early."""
    planted = {
        "deleted too early": lambda calls: calls.index("sendto", calls.index("rmdir")),
        "receipt too late": lambda calls: calls.index("write", calls.index("rmdir")),
        "two steps": lambda calls: calls.index("write"),
        "commit too early": lambda calls: len(calls) - 1 - calls[::-1].index("rename"),
    }
    with every_step.Worker(tmp_path / "worker") as worker:
        for name, worst in planted.items():
            whole = worker.happen(name, 0)
            assert whole.problem is None, whole.problem
            number = 1 + worst(whole.calls)
            # What arrives in how many pieces differs from time to time.
            near = sorted(range(max(1, number - 6), number + 9), key=lambda one: abs(one - number))
            assert any(worker.happen(name, one).problem for one in near), f"{name}: nobody noticed"
