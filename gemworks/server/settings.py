"""Everything about a server that can be set: one frozen dataclass a section, each setting with what it means.

The same fields make the TOML file (settings_file.py), the options of `gemworks serve`, what is printed at start and the
table of docs/serve.md. Sizes are bytes and may be written "20MB"; times are seconds. Nothing here holds a secret: API
keys and private keys are in files of their own, named here.
"""

import ipaddress
import typing
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from gemworks import env
from gemworks.errors import ConfigError

DEFAULT_PORT = 11434  # Ollama's, so that its clients find us

LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("auto", "json", "text")


@dataclass(frozen=True)
class Help:
    """What a setting means; least, most and one_of limit its values. `default` says in words what the code computes."""

    text: str
    least: float | None = None
    most: float | None = None
    one_of: tuple[str, ...] = ()
    default: str = ""

    def check(self, name: str, value: Any) -> None:
        """Raise ConfigError, naming the setting `name`, for a value out of range. None is always well."""
        if value is None:
            return
        if (self.least is not None and value < self.least) or (self.most is not None and value > self.most):
            wanted = f"at least {self.least:g}" if self.most is None else f"from {self.least:g} to {self.most:g}"
            raise ConfigError(f"{name} must be {wanted}, got {value:g}.")
        if self.one_of and value not in self.one_of:
            raise ConfigError(f'{name} must be one of {", ".join(self.one_of)}, got "{value}".')


class _Checked:
    """Checks ranges on construction, by what their `Help` says."""

    def __post_init__(self):
        for name, (_, told) in described(type(self)).items():
            told.check(name, getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class ModelSettings(_Checked):
    """Which models are served, and how they are loaded (gemworks.LLM)."""

    names: Annotated[tuple[str, ...], Help("Models to serve; the first is used where a request names none.")] = ()
    any_local: Annotated[bool, Help("Load any other model of this machine that a request names. Never downloads.")] = (
        True
    )
    max_loaded: Annotated[
        int, Help("Models in memory at once; one more evicts the idle one used longest ago.", least=1)
    ] = 1
    memory_bytes: Annotated[
        int | None, Help('What models in memory may take together, as "12GB"; unset: no limit but max_loaded.', least=1)
    ] = None
    keep_alive_s: Annotated[
        float, Help("Seconds a model not in `names` stays loaded unused; -1 for ever.", least=-1)
    ] = 300.0
    context: Annotated[
        int | None, Help("Longest prompt and answer together, in tokens; unset: 8,192 at most.", least=2)
    ] = None
    quant: Annotated[str | None, Help("Format weights are rounded to while loading, as int4-b32 or int8.")] = None
    embed: Annotated[str | None, Help("Format of the embedding and head, as int8.")] = None
    kv: Annotated[str | None, Help("What keys and values are stored as: bfloat16, int8 or float32.")] = None
    max_sequences: Annotated[int | None, Help("Answers computed together; unset: 1 to 8, by memory.", least=1)] = None
    draft: Annotated[str | None, Help('Speculation: "lookup", or the name of a smaller model.')] = None
    warm_up: Annotated[bool, Help("Compile every program before the first request.")] = True
    warm_up_images: Annotated[
        bool, Help("Load and compile the eyes of models that see, too; else the first image waits for them.")
    ] = True


@dataclass(frozen=True, kw_only=True)
class LimitSettings(_Checked):
    """What one caller, one request and the server as a whole may take. A key's own limits win over these."""

    queue: Annotated[int, Help("Calls that may wait for their first token; one more gets 429.", least=1)] = 512
    requests_per_minute: Annotated[int | None, Help("Calls of one key in any 60 seconds.", least=1)] = None
    tokens_per_minute: Annotated[
        int | None, Help("Tokens of one key, prompt and answer, in any 60 seconds.", least=1)
    ] = None
    concurrency: Annotated[int | None, Help("Calls of one key at the same time.", least=1)] = None
    body_bytes: Annotated[int, Help("Longest request body.", least=1)] = 32_000_000
    image_bytes: Annotated[int, Help("Largest image, encoded as it is sent or fetched.", least=1)] = 20_000_000
    schema_bytes: Annotated[int, Help("Longest JSON schema or grammar of one request.", least=1)] = 65_536
    header_timeout_s: Annotated[float, Help("Seconds a request's line and headers may take to arrive.", least=1)] = 30.0
    body_timeout_s: Annotated[float, Help("Seconds a request's body may take to arrive.", least=1)] = 60.0
    idle_s: Annotated[float, Help("Seconds a connection may stay open without a request.", least=1)] = 60.0
    stream_idle_s: Annotated[float, Help("Seconds a stream waits for a client that does not read.", least=1)] = 120.0


@dataclass(frozen=True, kw_only=True)
class TlsSettings(_Checked):
    """HTTPS. Both files or none."""

    certificate: Annotated[Path | None, Help("PEM file with the certificate and its chain.")] = None
    key: Annotated[Path | None, Help("PEM file with the private key.")] = None

    def __post_init__(self):
        super().__post_init__()
        if (self.certificate is None) != (self.key is None):
            there, missing = ("certificate", "key") if self.key is None else ("key", "certificate")
            raise ConfigError(f"tls.{there} is set and tls.{missing} is not: HTTPS needs both files.")

    @property
    def is_on(self) -> bool:
        """Whether the server speaks HTTPS."""
        return self.certificate is not None


@dataclass(frozen=True, kw_only=True)
class CorsSettings(_Checked):
    """Which web pages of other origins may use the server from a browser."""

    origins: Annotated[tuple[str, ...], Help('Origins allowed, as "https://chat.example.com"; "*" is every one.')] = ()
    loopback: Annotated[bool, Help("Allow pages of this machine (localhost, any port), as Ollama does.")] = True


@dataclass(frozen=True, kw_only=True)
class MetricsSettings(_Checked):
    """Prometheus, at /metrics."""

    enabled: Annotated[bool, Help("Serve /metrics.")] = True
    needs_key: Annotated[bool, Help("Ask for an API key there too.")] = False


@dataclass(frozen=True, kw_only=True)
class LogSettings(_Checked):
    """The log: one line a request, never a prompt or an answer."""

    level: Annotated[str, Help("debug, info, warning or error.", one_of=LOG_LEVELS)] = "info"
    format: Annotated[str, Help("json, text, or auto: text in a terminal and JSON elsewhere.", one_of=LOG_FORMATS)] = (
        "auto"
    )
    file: Annotated[Path | None, Help("File to append to instead of stderr.")] = None


@dataclass(frozen=True, kw_only=True)
class TelemetrySettings(_Checked):
    """OpenTelemetry spans (the extra `telemetry`). Headers of the exporter come from its own variables."""

    endpoint: Annotated[str | None, Help('OTLP/HTTP address of a collector, as "http://localhost:4318/v1/traces".')] = (
        None
    )
    service: Annotated[str, Help("Name of this service in the spans.")] = "gemworks"


@dataclass(frozen=True, kw_only=True)
class Settings(_Checked):
    """All of a server. `Settings()` is a server on loopback that any program of this machine may use."""

    host: Annotated[str, Help("Address to listen on; 0.0.0.0 is every IPv4 one, :: every one.")] = "127.0.0.1"
    port: Annotated[int, Help("Port to listen on; 0 takes a free one.", least=0, most=65_535)] = DEFAULT_PORT
    keys_file: Annotated[Path | None, Help("API keys (gemworks key add); unset: anybody who can connect may ask.")] = (
        None
    )
    usage_file: Annotated[Path, Help("Usage per key, in SQLite.", default="$GEMWORKS_HOME/usage.sqlite")] = field(
        default_factory=lambda: env.home() / "usage.sqlite"
    )
    grace_s: Annotated[float, Help("Seconds running answers get to finish after SIGTERM or Ctrl-C.", least=0)] = 30.0
    image_hosts: Annotated[
        tuple[str, ...], Help("Hosts that images may be fetched from by URL; none: data URLs only.")
    ] = ()
    hosts: Annotated[
        tuple[str, ...], Help("Names this server answers to without keys, beside loopback ones; see Safety.")
    ] = ()
    models: ModelSettings = field(default_factory=ModelSettings)
    limits: LimitSettings = field(default_factory=LimitSettings)
    tls: TlsSettings = field(default_factory=TlsSettings)
    cors: CorsSettings = field(default_factory=CorsSettings)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    logs: LogSettings = field(default_factory=LogSettings)
    telemetry: TelemetrySettings = field(default_factory=TelemetrySettings)

    @property
    def is_loopback(self) -> bool:
        """Whether only programs of this machine can connect."""
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return self.host == "localhost"


def sections() -> dict[str, type]:
    """Name -> class of every section, the top level first under ""."""
    hints = typing.get_type_hints(Settings)
    nested = {name: kind for name, kind in hints.items() if isinstance(kind, type) and issubclass(kind, _Checked)}
    return {"": Settings} | nested


@cache
def described(section: type) -> dict[str, tuple[Any, Help]]:
    """Name -> type and help of a section's own settings, in order."""
    hints = typing.get_type_hints(section, include_extras=True)
    annotated = {name: typing.get_args(hint) for name, hint in hints.items() if typing.get_origin(hint) is Annotated}
    return {name: (kind, told) for name, (kind, told) in annotated.items()}
