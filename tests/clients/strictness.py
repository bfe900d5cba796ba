"""Whether an SDK's object is all that its own type says. SDKs build objects without validating, so a test must."""

from typing import Any

import pydantic

# Told beyond the SDK's types: thinking, in the field of local servers; the rest as the vendor's own servers do.
EXTENSIONS = {
    "ChatCompletionMessage": {"reasoning_content"},
    "ChoiceDelta": {"reasoning_content"},
    "Response": {"store"},
    "ResponseCustomToolCall": {"status"},
}


def check(model: pydantic.BaseModel) -> None:
    """Validates the object against its own type and refuses fields that the type does not know."""
    type(model).model_validate(model.model_dump(by_alias=True, exclude_unset=True, warnings="error"))
    _refuse_extras(model, type(model).__name__)


def _refuse_extras(value: Any, at: str) -> None:
    if isinstance(value, pydantic.BaseModel):
        known = {field for base in type(value).__mro__ for field in EXTENSIONS.get(base.__name__, ())}
        unknown = set(value.model_extra or {}) - known
        assert not unknown, f"{at} has fields that {type(value).__name__} does not know: {sorted(unknown)}"
        for name in type(value).model_fields:
            _refuse_extras(getattr(value, name), f"{at}.{name}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _refuse_extras(item, f"{at}[{index}]")
