"""The OpenAPI document: FastAPI's, with the bodies that handlers read themselves."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel


def document(app: FastAPI) -> dict[str, Any]:
    """Return the application's OpenAPI document, made once."""
    if app.openapi_schema is None:
        made = get_openapi(title=app.title, version=app.version, routes=app.routes)
        schemas = made.setdefault("components", {}).setdefault("schemas", {})
        for path in made["paths"].values():
            for operation in path.values():
                _lift(operation, schemas)
        app.openapi_schema = made
    return app.openapi_schema


def body_of(model: type[BaseModel]) -> dict[str, Any]:
    """Return `openapi_extra` of a route whose body is `model`."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _lift(operation: dict[str, Any], schemas: dict[str, Any]) -> None:
    """Move a body's own definitions to where the document looks for them."""
    content = operation.get("requestBody", {}).get("content", {})
    for kind in content.values():
        schemas |= kind.get("schema", {}).pop("$defs", {})
