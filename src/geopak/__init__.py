"""geopak: where in a country was this photo taken? Province, geocell, offset, from pixels alone."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from geopak.predictor import GeopakPredictor

__version__ = "0.1.0"
__all__ = ["GeopakPredictor", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "GeopakPredictor":
        from geopak.predictor import GeopakPredictor

        return GeopakPredictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
