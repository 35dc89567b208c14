"""Text that came from a tool, made harmless for a terminal: control characters are shown, not obeyed."""

import re
from typing import Any

# C0 but tab and newline, DEL, C1; marks that turn the direction of text around; invisible "tags" (U+E0000..E007F), in
# which instructions can be hidden from people who read the text.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\U000e0000-\U000e007f\ud800-\udfff]"
)


def clean_text(text: str) -> str:
    r"""`text` with every control character in its escaped form (`\x1b`), line ends as newlines."""
    return _UNSAFE.sub(_shown, text.replace("\r\n", "\n"))


def clean(value: Any) -> Any:
    """A JSON value with every text in it cleaned, keys too."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, list):
        return [clean(item) for item in value]
    if isinstance(value, dict):
        return {clean_text(key): clean(item) for key, item in value.items()}
    return value


def _shown(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
