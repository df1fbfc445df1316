"""Where a port of ours is open: who reaches it needs no password, so it should be as few as possible."""

from __future__ import annotations

import ipaddress
import os
import socket


def bind_address(host: str, port: int) -> dict[str, str]:
    """The setting of ``jax.distributed.initialize`` by which a coordinator that is named by an address of this machine
    alone, such as ``localhost``, listens there and not on every network. Of any other name JAX listens on all
    addresses: the machine need not have it itself, as behind a cluster's service."""
    if os.environ.get("JAX_COORDINATOR_BIND_ADDRESS"):
        return {}
    try:
        found = [str(address[0]) for *_, address in socket.getaddrinfo(host.strip("[]"), port)]
    except (OSError, UnicodeError):
        return {}
    local = all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in found)
    return {"coordinator_bind_address": f"{host}:{port}"} if local else {}
