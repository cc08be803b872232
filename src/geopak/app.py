"""A page that tells where photos were taken: ``python -m geopak.app ckpt=best.ckpt``."""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from geopak.cli import entry_point
from geopak.errors import ConfigError, GeopakError

if TYPE_CHECKING:
    from geopak.web.guard import Guard

log = logging.getLogger(__name__)

_LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")
# Connections at once beside those that wait for an answer: of the pages that are open.
_MORE_CONNECTIONS = 400


def serve(cfg: DictConfig) -> None:
    """Serves the page until it is interrupted.

    Raises:
        GeopakError: no checkpoint, an address that cannot be had, or no Gradio.
    """
    # Before Gradio is imported: it would report itself, and look for news.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import gradio
        import uvicorn
    except ImportError as error:
        raise GeopakError(
            f"The page needs Gradio ({error.name} is missing): pip install 'geopak[app]'."
        ) from error
    del gradio

    from geopak.web.private_folder import private_folder

    # A closed terminal and a service manager end the server as Ctrl-C does: photos are deleted.
    # Uvicorn ends in good order, then sends itself the signal again.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    hang_up = getattr(signal, "SIGHUP", None)
    # nohup has it ignored.
    if hang_up is not None and signal.getsignal(hang_up) is not signal.SIG_IGN:
        signal.signal(hang_up, lambda *_: signal.raise_signal(signal.SIGTERM))
    listening = _listen(cfg.host, cfg.port)
    try:
        with private_folder() as folder:
            # Gradio puts uploads there.
            os.environ["GRADIO_TEMP_DIR"] = str(folder)
            site, hosts = _site(cfg, folder)
            host, port = listening.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            log.info("open http://%s:%d in a browser; Ctrl-C ends it", shown, port)
            if not hosts:
                log.warning(
                    "warning: host=%s lets in everyone who can reach this machine, without a "
                    "password.",
                    cfg.host,
                )
            config = uvicorn.Config(
                site,
                log_level="warning",
                server_header=False,
                limit_concurrency=cfg.max_waiting + _MORE_CONNECTIONS,
                timeout_graceful_shutdown=3,
            )
            uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:
        log.info("ended")
    finally:
        listening.close()


def _site(cfg: DictConfig, folder: Path) -> tuple[Guard, list[str]]:
    """The page, and the names that it answers to."""
    from geopak.predictor import predictor_of
    from geopak.retrieval import PhotoIndex
    from geopak.web.photos import Limits
    from geopak.web.site import make_site

    predictor, known = predictor_of(cfg), None
    if cfg.prepared is not None:
        trained = predictor.trained
        known = PhotoIndex.of_folder(
            trained.model, trained.region, cfg.prepared, cfg.root, cfg.feature_folder
        )
    limits = Limits(
        max_mb=cfg.max_mb,
        max_megapixels=cfg.max_megapixels,
        max_photos=cfg.max_photos,
        max_batch_mb=cfg.max_batch_mb,
        timeout_s=cfg.timeout_s,
        max_waiting=cfg.max_waiting,
        keep_minutes=cfg.keep_minutes,
    )
    hosts = _names(cfg.host, list(cfg.hosts))
    return make_site(predictor, limits, folder, hosts, known), hosts


def _listen(host: str, port: int) -> socket.socket:
    """A socket that is bound, so that a port in use is known before the model is loaded.

    Raises:
        ConfigError: the address cannot be had.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        raise ConfigError(
            f"host={host} port={port} cannot be had: {error.strerror or error}. port=0 takes any "
            "port that is free."
        ) from error
    return listening


def _names(host: str, more: list[str]) -> list[str]:
    """Names that the server may be called by; empty: any."""
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = host == "localhost"
    if is_loopback:
        return [*_LOOPBACK_NAMES, host.lower(), *(name.lower() for name in more)]
    return [host.lower(), *(name.lower() for name in more)] if more else []


@entry_point("app")
def main(cfg: DictConfig) -> None:
    serve(cfg)


if __name__ == "__main__":
    main()
