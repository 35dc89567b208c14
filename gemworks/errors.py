"""The exception tree. Every error a user can cause is one of these, and its text is the whole message.

A message says: subject, requirement, what came; then what it likely means; then what to do next.
Programming errors are plain `assert`s and are not here.
"""


class GemworksError(Exception):
    """Base class; never raised itself."""


class ConfigError(GemworksError, ValueError):
    """What was asked cannot be built: a contradictory option, an unknown model name."""


class NotFoundError(ConfigError):
    """No model of that name. Becomes HTTP 404."""


class CheckpointError(GemworksError):
    """A file of a model (weights, config, tokenizer) is not what it should be."""


class BackendError(GemworksError):
    """This machine cannot do that."""


class RequestError(GemworksError, ValueError):
    """One caller's fault. Becomes HTTP 4xx."""


class ContextLengthError(RequestError):
    """A prompt, or a prompt and its answer, longer than the context."""


class AccessError(GemworksError):
    """Who asks is unknown (HTTP 401), or may not do that (`forbidden`, HTTP 403)."""

    def __init__(self, message: str, *, forbidden: bool = False):
        super().__init__(message)
        self.forbidden = forbidden


class CapacityError(GemworksError):
    """Too large for now: try later, or smaller. Becomes HTTP 429 or 503."""


class LimitError(CapacityError):
    """A caller's limit, or a full queue. Becomes HTTP 429; after `retry_after_s` seconds it is worth another try."""

    def __init__(self, message: str, *, retry_after_s: float):
        super().__init__(message)
        self.retry_after_s = retry_after_s


class StorageError(GemworksError):
    """A file could not be read or written: permission, full disk, not found."""


class DownloadError(GemworksError):
    """A model could not be fetched: no network, no access, no such repository."""


class GemworksWarning(UserWarning):
    """Something works but not as it should; the text says what and what to do. Shown once."""
