"""Being asked to stop, once and twice, in a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import sys, time
from jasper_jax.runtime import interrupt
interrupt.ECHO = float(sys.argv[1])
with interrupt.stop_flag() as stop:
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
