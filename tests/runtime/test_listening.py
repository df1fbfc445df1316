"""Where the port of the processes of a run is open."""

from __future__ import annotations

from typing import Any

import pytest

from jasper_jax.runtime import joining
from jasper_jax.runtime.listening import bind_address

BIND = "coordinator_bind_address"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "localhost", "[::1]"])
def test_a_coordinator_of_this_machine_alone_is_open_to_this_machine_alone(host: str) -> None:
    """JAX listened on all addresses: a stranger on the network joined the run in the place of process 1."""
    assert bind_address(host, 8476) == {BIND: f"{host}:8476"}


@pytest.mark.parametrize("host", ["10.0.0.1", "0.0.0.0", "[2001:db8::1]", "no.such.host.invalid", "a" * 300])
def test_of_any_other_the_machine_need_not_have_the_address(host: str) -> None:
    assert bind_address(host, 8476) == {}


def test_what_the_environment_says_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_COORDINATOR_BIND_ADDRESS", "0.0.0.0:8476")
    assert bind_address("127.0.0.1", 8476) == {}


def test_process_0_listens_there(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(joining, "join", lambda patience, **settings: asked.append(settings))
    monkeypatch.setattr(joining, "_wait_for_coordinator", lambda *_: None)
    for index in (0, 1):
        joining.connect("127.0.0.1:8476", 2, index)
    assert [settings.get(BIND) for settings in asked] == ["127.0.0.1:8476", None]
