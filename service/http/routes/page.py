"""GET /: the page for people; GET /assets/{name}: the files that it loads."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from service.errors import RouteNotFoundError
from service.page.shell import read_assets, render_page


def page_router() -> APIRouter:
    """Return the router of the page, with its files read. It is no part of the API's contract."""
    router = APIRouter(include_in_schema=False)
    html, assets = render_page(), read_assets()

    @router.get("/")
    async def page() -> HTMLResponse:
        return HTMLResponse(html)

    @router.get("/assets/{name}")
    async def page_asset(name: str, request: Request) -> Response:
        asset = assets.get(name)
        if asset is None:
            raise RouteNotFoundError("the page has no file of this name")
        # Kept by the browser, and asked for again each time: a new version of the server is never half an old one.
        headers = {"etag": asset.etag, "cache-control": "no-cache"}
        if asset.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(asset.content, media_type=asset.media_type, headers=headers)

    return router
