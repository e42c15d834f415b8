"""Holdfast keeps SSH port forwards alive in the background."""

from holdfast.version import __version__

__all__ = ["__version__"]
