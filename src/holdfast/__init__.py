"""Holdfast keeps SSH port forwards alive. `tunnel` and `atunnel` open one for as long as a program runs.

    with holdfast.tunnel("lab", 8888) as t:
        requests.get(t.url)

What is named here is all that programs need. It is imported when it is used: the command line doesn't pay for it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from holdfast.version import __version__

if TYPE_CHECKING:
    from holdfast.errors import HoldfastError, LoginNeeded, TookTooLong, UsageError
    from holdfast.events import Event
    from holdfast.leasing import Endpoint, Tunnel, atunnel, tunnel

__all__ = [
    "Endpoint",
    "Event",
    "HoldfastError",
    "LoginNeeded",
    "TookTooLong",
    "Tunnel",
    "UsageError",
    "__version__",
    "atunnel",
    "tunnel",
]

_MODULES = {"errors": ("HoldfastError", "LoginNeeded", "TookTooLong", "UsageError"), "events": ("Event",)}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'holdfast' has no attribute '{name}'")
    module = next((module for module, names in _MODULES.items() if name in names), "leasing")
    return getattr(import_module(f"holdfast.{module}"), name)
