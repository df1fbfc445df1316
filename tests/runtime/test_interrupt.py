"""Being asked to stop, once and twice, in a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest

from jasper_jax.runtime.errors import Interrupted
from jasper_jax.runtime.interrupt import SIGNALS, stop_flag

PROGRAM = """
import sys, time
from jasper_jax.runtime import interrupt
interrupt.ECHO = float(sys.argv[1])
with interrupt.process_of_command(), interrupt.stop_flag() as stop:
    print("ready", flush=True)
    while not stop():
        time.sleep(0.01)
    print("asked", flush=True)
    time.sleep(0.5)
    sys.exit(interrupt.EXIT_CODE)
"""


@pytest.mark.parametrize(
    ("numbers", "echo", "code"),
    [
        ((signal.SIGTERM,), 5, 75),
        ((signal.SIGINT,), 5, 75),
        ((signal.SIGTERM, signal.SIGTERM), 5, 75),  # SLURM delivers one request twice
        ((signal.SIGTERM, signal.SIGTERM), 0, 128 + signal.SIGTERM),
        ((signal.SIGINT, signal.SIGINT), 5, 128 + signal.SIGINT),
        ((signal.SIGTERM, signal.SIGINT), 5, 128 + signal.SIGINT),
    ],
)
def test_the_second_signal_ends_the_process_unless_it_echoes_the_first(numbers, echo: float, code: int) -> None:
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(echo)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(numbers[0])
    assert process.stdout.readline() == "asked\n"
    for number in numbers[1:]:
        process.send_signal(number)
    assert process.wait(timeout=60) == code
    process.stdout.close()


@pytest.mark.parametrize(
    ("numbers", "error", "message"),
    [
        ((signal.SIGINT,), KeyboardInterrupt, "saved; the same call continues"),
        ((signal.SIGTERM,), Interrupted, "^$"),
        ((signal.SIGTERM, signal.SIGTERM), Interrupted, "^$"),
        ((signal.SIGINT, signal.SIGINT), KeyboardInterrupt, "without saving"),
        ((signal.SIGTERM, signal.SIGINT), KeyboardInterrupt, "without saving"),
    ],
)
def test_called_from_python_a_request_is_an_exception_and_the_process_stays(numbers, error, message: str) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]

    def work() -> None:
        with stop_flag() as stop:
            for number in numbers:
                signal.raise_signal(number)
            assert stop()
            raise Interrupted

    with pytest.raises(error, match=message):
        work()
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_work_with_nothing_to_save_is_abandoned_by_keyboard_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt, match="the same call continues"), stop_flag() as stop, stop.immediately():
        signal.raise_signal(signal.SIGINT)


def test_in_another_thread_no_signals_are_handled() -> None:
    seen: list[bool] = []

    def work() -> None:
        with stop_flag() as stop, stop.immediately():
            seen.append(stop())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
