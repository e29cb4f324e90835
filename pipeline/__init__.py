"""Conservator: restores image archives in batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.restoration.canvas import Restored
    from pipeline.restoration.restorer import Restorer

__all__ = ["Restored", "Restorer"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Load PyTorch only when the model is asked for: `conservator --help` must not wait for it."""
    if name in __all__:
        from pipeline.restoration import restorer

        return getattr(restorer, name)
    raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
