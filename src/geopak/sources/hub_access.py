"""The hub of Hugging Face: the library and the token it takes, and its errors as a collection's."""

from __future__ import annotations

import os
import re
from typing import Any

import httpx

from geopak.errors import RefusedQueryError, SourceError

TOKEN = "HF_TOKEN"


def require_datasets() -> Any:
    """The library ``datasets``.

    Raises:
        SourceError: it is not installed; says how to.
    """
    try:
        import datasets
    except ImportError as error:
        raise SourceError(
            "Data sets of Hugging Face need the library datasets: pip install 'geopak[hub]' (or "
            "pip install datasets)."
        ) from error
    return datasets


def token_of_hub() -> str | None:
    """The token of the hub from the environment; ``None``: there is none.

    Raises:
        SourceError: it can be none; does not show it.
    """
    token = os.environ.get(TOKEN, "").strip()
    if not re.fullmatch(r"[!-~]*", token):
        raise SourceError(
            f"{TOKEN} holds signs that no token has (spaces, line breaks or letters with accents). "
            "Copy it anew from https://huggingface.co/settings/tokens."
        )
    return token or None


def translated(error: Exception, dataset: str, is_local: bool) -> Exception:
    """An error of the libraries as one that the collector knows.

    Args:
        error: of ``datasets``, of the hub's client, or of what they read with.
        dataset: its name, for the message.
        is_local: its files are on this machine.
    """
    kinds = {kind.__name__ for kind in type(error).__mro__}
    name = f"the data set {dataset}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    told = str(error).strip().partition("\n")[0][:200] or type(error).__name__
    if "OfflineModeIsEnabled" in kinds:
        return SourceError(
            f"{name[0].upper()}{name[1:]} is on the hub, and HF_HUB_OFFLINE forbids to ask it. "
            "Unset HF_HUB_OFFLINE, or name a folder."
        )
    if "RevisionNotFoundError" in kinds or (
        "DatasetNotFoundError" in kinds and "revision" in told.lower()
    ):
        return SourceError(
            f"{name[0].upper()}{name[1:]} has no such revision on the hub: {told} Name a "
            "branch, tag or commit of it, source.revision=NAME."
        )
    if kinds & {"GatedRepoError", "RepositoryNotFoundError", "DatasetNotFoundError"} or (
        status in (401, 403)
    ):
        has = "the token may not see it" if token_of_hub() else f"no token is in {TOKEN}"
        return SourceError(
            f"The hub does not show {name}: there is none of that name, or it is private or "
            f"gated ({has}). Look at its page, accept its terms there, and put a token "
            f"of https://huggingface.co/settings/tokens into {TOKEN}."
        )
    if kinds & {"DatasetsError", "EmptyDatasetError"} or isinstance(error, (ValueError, KeyError)):
        kind = type(error).__name__
        return SourceError(f"{name[0].upper()}{name[1:]} cannot be read ({kind}): {told}")
    if isinstance(status, int) and 400 <= status < 500 and status != 429:
        return RefusedQueryError(f"The hub answers {status} for a file of {name}")
    if is_local:
        return RefusedQueryError(f"A file of {name} cannot be read: {told}")
    return httpx.TransportError(f"no answer of the hub for {name} ({type(error).__name__})")
