"""The API beside the page: a photo in, its place out as JSON. Nothing of a photo is stored."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse

from geopak.errors import GeopakError, PhotoError
from geopak.web.asking import Asking
from geopak.web.service import BusyError, TooSlowError


def make_routes(asking: Asking) -> APIRouter:
    """Routes below ``/api``.

    Args:
        asking: answers.
    """
    router = APIRouter(prefix="/api")

    @router.get("", response_class=HTMLResponse, include_in_schema=False)
    def documentation(request: Request) -> str:
        return asking.api_page(str(request.base_url).rstrip("/"))

    @router.get("/model", summary="What the model knows, and what is accepted")
    def model() -> dict[str, Any]:
        return asking.about()

    @router.post(
        "/locate",
        summary="Where was this photo taken?",
        openapi_extra={
            "requestBody": {
                "required": True,
                "description": "The photo's file as it is.",
                "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}},
            }
        },
    )
    async def locate(request: Request, why: bool = False) -> JSONResponse:
        """The answer; with ``why=true`` also a heat map, the weights of the encoders, and the train
        photos that look most alike."""
        content = await request.body()
        if not content:
            return JSONResponse({"error": "The body of the request must be a photo."}, 400)
        if request.headers.get("content-type", "").startswith("multipart/"):
            reason = (
                "The body is a form, not a photo: send the file itself "
                "(curl --data-binary @photo.jpg, not -F)."
            )
            return JSONResponse({"error": reason}, 400)
        try:
            return JSONResponse(await asking.api_answer(content, why))
        except BusyError as error:
            return JSONResponse({"error": str(error)}, 503, {"retry-after": "30"})
        except TooSlowError as error:
            return JSONResponse({"error": str(error)}, 504)
        except PhotoError as error:
            return JSONResponse({"error": str(error)}, 422)
        except GeopakError as error:
            return JSONResponse({"error": str(error)}, 400)

    return router


async def refuse_query(_: Request, error: Exception) -> JSONResponse:
    """The answer to a query that is not understood, in the API's own form."""
    assert isinstance(error, RequestValidationError)
    what = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
    return JSONResponse({"error": f"This request is not understood: {what}."}, 400)
