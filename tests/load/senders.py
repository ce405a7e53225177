"""Processes that send for many simulated runs, each a share of them."""

import multiprocessing
import threading

from load.simulated_run import SimulatedRun


class Senders:
    """Sends for runs from several processes.

    Args:
        url: the hub's.
        key: an API key.
        load: what every run does.
        runs: how many.
        processes: that send for them.
        folder: for what the runs write.
    """

    def __init__(self, url, key, load, runs, processes, folder):
        self._queue = multiprocessing.Queue()
        self._over = multiprocessing.Event()
        processes = min(processes, runs)
        shares = [range(number, runs, processes) for number in range(processes)]
        self._processes = [
            multiprocessing.Process(
                target=_send, args=(url, key, load, share, folder, self._queue, self._over), daemon=True
            )
            for share in shares
        ]

    def begin(self):
        """Starts them; returns the models' ids once every run is registered and has joined."""
        for process in self._processes:
            process.start()
        return [model_id for _ in self._processes for model_id in self._queue.get(timeout=300)]

    def finish(self):
        """Asks the runs to finish; returns what each has sent (`Sent`) once the hub has acknowledged all of it."""
        self._over.set()
        sent = [one for _ in self._processes for one in self._queue.get(timeout=600)]
        for process in self._processes:
            process.join()
        return sent


def _send(url, key, load, numbers, folder, queue, over):
    runs = [SimulatedRun(url, key, load, number, folder) for number in numbers]
    threads = [
        threading.Thread(target=run.run, name=f"run-{number}") for number, run in zip(numbers, runs, strict=True)
    ]
    for thread in threads:
        thread.start()
    for run in runs:
        run.joined.wait(240)
    queue.put([run.sent.model_id for run in runs])
    over.wait()
    for run in runs:
        run.end()
    for thread in threads:
        thread.join()
    queue.put([run.sent for run in runs])
