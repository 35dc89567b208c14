"""What the hub's errors mean and what to do about them, in our words.

Not here: errors of the disk (download.py).
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from gemworks import env
from gemworks.errors import ConfigError, DownloadError
from gemworks.weights import hub


def hub_error_types() -> tuple[type[Exception], Any]:
    """Return the classes of (any error of the connection, an answer that says no).

    The first is httpx's in huggingface_hub 1 and httpx2's in 2, so it is taken from the class that derives from it.
    """
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError.__bases__[0], HfHubHTTPError


@contextlib.contextmanager
def explained(repository: str, name: str, endpoint: str) -> Iterator[None]:
    """Turn errors of huggingface_hub inside the block into DownloadError (ConfigError for an impossible name)."""
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

    transport_error, http_error = hub_error_types()
    try:
        yield
    except http_error as error:
        raise DownloadError(_refusal(error, repository, name, endpoint)) from error
    except HFValidationError as error:
        raise ConfigError(f'"{repository}": the hub allows no such name; a repository is called org/name.') from error
    except OfflineModeIsEnabled as error:
        raise DownloadError(f"{name} cannot be fetched: HF_HUB_OFFLINE is set. Unset it and pull again.") from error
    except transport_error as error:
        raise DownloadError(
            f"{endpoint} cannot be reached: {str(error) or type(error).__name__}.\n"
            "Check the network and proxy, or name another hub with --endpoint. What has been fetched is kept."
        ) from error


def _refusal(error: Any, repository: str, name: str, endpoint: str) -> str:
    """What an answer of the hub that says no means, and what to do."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    status, said = error.response.status_code, error.server_message or ""
    again = f"then run: gemworks pull {name}"
    if isinstance(error, GatedRepoError) or (status == 403 and "gated" in said.lower()):
        return _gated(repository, endpoint, again)
    if status == 401 and "credentials" in (said + error.response.headers.get("X-Error-Message", "")).lower():
        return (
            f"{endpoint} does not accept the token in HF_TOKEN.\n"
            f"Make a new one at {endpoint}/settings/tokens (read access), set HF_TOKEN to it, {again}"
        )
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return (
            f"{endpoint} has no repository {repository}, or it is private.{hub.suggestion(repository)}\n"
            "Check the name; for a private repository set HF_TOKEN to a token that may read it."
        )
    if status in (401, 403):
        return (
            f"{endpoint} refuses access to {repository} ({status}{': ' + said if said else ''}).\n"
            f"Open {endpoint}/{repository} to see what it asks for, set HF_TOKEN to a token with read access, {again}"
        )
    return f"{endpoint} answered {status} for {repository}. Try again later; what has been fetched is kept."


def _gated(repository: str, endpoint: str, again: str) -> str:
    steps = (
        f'  1. Open {endpoint}/{repository}, sign in and click "Acknowledge license".\n'
        f"  2. Make a token with read access at {endpoint}/settings/tokens.\n"
        f"  3. Set it: export HF_TOKEN=hf_..., {again}"
    )
    if env.hub_token() is None:
        return f"{repository} is gated: its owner asks you to accept a license first.\n{steps}"
    return (
        f"{repository} is gated, and the account of the token in HF_TOKEN has no access to it yet.\n{steps}\n"
        '  A fine-grained token also needs "Read access to contents of all public gated repos you can access".'
    )
