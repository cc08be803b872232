"""``python -m geopak.synthetic``: writes the rendered photo set of a region."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from geopak.cli import entry_point


@entry_point("synthetic")
def main(cfg: DictConfig) -> Path:
    """Writes the set that the configuration describes and returns its folder."""
    from geopak.render.photoset import write_photo_set

    settings = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(settings, dict)
    return write_photo_set({str(key): value for key, value in settings.items()})


if __name__ == "__main__":
    main()
