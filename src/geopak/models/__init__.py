"""The network: two encoders, gated fusion, province, cell and offset heads, decoding."""

import sys

# What timm and open_clip try to import where it is installed: W&B for a training script, and
# transformers for text towers.
_NOT_NEEDED = ("wandb", "transformers")


def _import_encoders_alone() -> None:
    """Imports timm and open_clip without large libraries that they can do without.

    Those cost every predictor seconds. An entry of ``None`` makes Python raise ImportError, which
    both expect; it is gone again before anyone else may ask.
    """
    hidden = [name for name in _NOT_NEEDED if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        import open_clip  # noqa: F401
        import timm  # noqa: F401
    finally:
        for name in hidden:
            del sys.modules[name]


_import_encoders_alone()
