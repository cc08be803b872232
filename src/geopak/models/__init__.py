"""The network: two encoders, gated fusion, province, cell and offset heads, decoding."""

import sys


def _import_timm_alone() -> None:
    """Imports timm without W&B, which it tries to import for its own training script.

    That costs every predictor most of a second. An entry of ``None`` makes Python raise
    ImportError, which timm expects; it is gone again before anyone else may ask.
    """
    hidden = "wandb" not in sys.modules
    if hidden:
        sys.modules["wandb"] = None  # type: ignore[assignment]
    try:
        import timm  # noqa: F401
    finally:
        if hidden:
            del sys.modules["wandb"]


_import_timm_alone()
