import signal
import subprocess
import sys
import threading
import time

import numpy as np

from trpo_jax.runs.stopping import NonFiniteUpdates, interruptible


def test_a_seed_that_is_lost_is_named():
    def metrics(*statuses):
        return [
            {"status": np.array(status), "update": update}
            for update, status in enumerate(statuses, start=7)
        ]

    nonfinite = NonFiniteUpdates(3)
    nonfinite.count(metrics([0, 0, 0], [0, 2, 2], [2, 0, 2], [2, 0, 2]))
    assert nonfinite.first == 8
    assert "update 8 is rejected because" in nonfinite.describe_first()
    assert "2, 1, 3 updates were rejected" in nonfinite.describe_total()
    assert nonfinite.consecutive.tolist() == [2, 0, 3]
    assert nonfinite.consecutive_in_all_seeds == 0
    assert "in seeds 0, 2, from update 8 on" in nonfinite.describe(10)


def test_the_first_signal_asks_and_handlers_come_back():
    before, messages = signal.getsignal(signal.SIGINT), []
    with interruptible(messages.append) as signals:
        assert not signals
        signal.raise_signal(signal.SIGINT)
        assert signals == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is before
    assert "SIGINT: finishing and saving" in messages[0]


def test_outside_the_main_thread_signals_keep_their_handlers():
    before, found = signal.getsignal(signal.SIGINT), []

    def work():
        with interruptible(print) as signals:
            found.append((signal.getsignal(signal.SIGINT), signals))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(before, [])]


def test_a_second_signal_leaves_at_once():
    program = (
        "import time\n"
        "from trpo_jax.runs.stopping import interruptible\n"
        "with interruptible(lambda text: print(text, flush=True)) as signals:\n"
        "    print('ready', flush=True)\n"
        "    while not signals: time.sleep(0.01)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert "SIGINT" in process.stdout.readline()
    time.sleep(0.1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == -signal.SIGINT
