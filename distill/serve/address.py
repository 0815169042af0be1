"""Where a server may listen: an address that others can reach asks for a key."""

from __future__ import annotations

import ipaddress

from distill.errors import DistillError


def is_loopback(host: str) -> bool:
    """True where only this machine can connect."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def refuse_open_host(host: str, api_key: str | None) -> None:
    """Raise DistillError for a host other than loopback without a key."""
    if api_key is None and not is_loopback(host):
        raise DistillError(
            f"refusing to listen on {host} without an API key: anybody could use the model",
            remedy="set --api-key-env, or listen on 127.0.0.1",
        )
