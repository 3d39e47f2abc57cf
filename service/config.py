"""Settings: the only code that reads the environment. Our variables have the prefix `FEATUREWATCH_`."""

from functools import cached_property
from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Settings of a server or worker process, from `FEATUREWATCH_*` variables."""

    model_config = SettingsConfigDict(env_prefix="FEATUREWATCH_", extra="ignore", frozen=True)

    data_dir: Path = Field(
        Path("featurewatch-data"), description="Data folder of an embedded installation: database, artifacts, caches."
    )
    private_files: bool = Field(
        True,
        description="Make the data folder (0700) and new files (0600) private to the user of the process. `false`: use "
        "its umask, for a folder that is shared with other users on purpose.",
    )
    database_url: str = Field(
        "", description="SQLAlchemy URL (`postgresql+psycopg://...`). Empty: SQLite in the data folder."
    )
    broker_url: str = Field(
        "", description="Redis or Valkey URL through which Celery notifies workers. Empty: workers poll the database."
    )
    artifacts: str = Field("", description="fsspec URI of the artifact store. Empty: a folder in the data folder.")
    roots: str = Field(
        "",
        description="Local folders that checkpoints, corpora and activations may be read from, separated by `:`.",
    )
    stores: str = Field(
        "hf://",
        description="URL prefixes that checkpoints may be read from, in addition to `roots`, separated by commas: "
        "`hf://`, `hf://org`, `s3://bucket/models`. Empty: none.",
    )
    secret_key: SecretStr = Field(
        SecretStr(""),
        description="Encrypts the URLs and secrets of webhooks, and the cookies of the pages. Empty: generated and "
        "stored in the data folder (embedded installations).",
    )
    secret_key_old: SecretStr = Field(
        SecretStr(""),
        description="Earlier secret keys, separated by commas, still accepted for decryption. Needed during a rotation "
        "(`featurewatch key rotate-secret`).",
    )
    require_keys: bool = Field(
        True, description="Require an API key for requests. `featurewatch up` on a loopback address turns this off."
    )
    webhook_allow: str = Field("", description="Private networks that webhooks may reach (CIDR, separated by commas).")
    webhook_seconds: float = Field(
        15.0, gt=0, le=30, description="Timeout of a webhook delivery in seconds, from the connection to the response."
    )
    webhook_pause_days: float = Field(
        5.0,
        ge=0,
        description="Days after which a webhook whose deliveries all fail is paused, with an alert. 0: never.",
    )
    webhook_keep_days: float = Field(
        30.0,
        ge=1,
        description="Days for which events and deliveries are kept, including those waiting for paused webhooks.",
    )
    label_url: str = Field(
        "", description="OpenAI-compatible endpoint that labels features, up to `/v1`. Workers call it. Empty: none."
    )
    label_model: str = Field("", description="Model of the label endpoint.")
    label_key: SecretStr = Field(
        SecretStr(""), description="API key of the label endpoint. Only workers need it. Empty: none."
    )
    label_allow: str = Field(
        "", description="Private networks that the label endpoint may be in (CIDR, separated by commas)."
    )
    label_seconds: float = Field(60.0, gt=0, description="Timeout of a request to the label endpoint, in seconds.")
    lease_seconds: float = Field(
        60.0,
        gt=0,
        description="Seconds after which a silent worker loses its run. A process of a worker that shows no sign of "
        "life for this long is killed.",
    )
    save_seconds: float = Field(
        20.0,
        gt=0,
        description="Seconds between checkpoints of a fit in progress; at most this much work is lost with a worker.",
    )
    run_seconds: float = Field(
        172_800.0,
        ge=0,
        description="Maximum seconds for an attempt at a run, which then fails at its next step. 0: no limit.",
    )
    run_grace_seconds: float = Field(
        600.0,
        gt=0,
        description="Additional seconds for a run that takes no steps or was cancelled, before its process is killed "
        "and the run ends.",
    )
    poll_seconds: float = Field(1.0, gt=0, description="Seconds between polls of sweeps and workers.")
    threads: int = Field(0, ge=0, description="CPU threads of torch in a worker. 0: torch's default.")
    device: str = Field("auto", description="Device of the workers: `auto`, `cpu`, `cuda` or `cuda:N`.")
    fit_processes: int = Field(
        0, ge=0, description="Processes that share a fit. 0: one per GPU of the worker, or one on a CPU."
    )
    share_harvests: bool = Field(True, description="Let idle workers help with the harvests of others. Needs a broker.")
    shard_positions: int = Field(
        16_384,
        gt=0,
        description="Positions per shard: what a harvest keeps in memory, loses if killed, or hands to a helper.",
    )
    keep_activations: int = Field(
        8,
        ge=0,
        description="Number of newest checkpoints per family whose activations are kept, in addition to those that "
        "re-fits train on. 0: all.",
    )
    vacuum_hours: float = Field(
        24.0,
        ge=0,
        description="Hours for which unreferenced artifacts are kept. Finish copying the artifact store within this "
        "time after backing up the database. 0: forever.",
    )
    audit_days: float = Field(365.0, ge=0, description="Days for which the audit log is kept. 0: forever.")
    answer_hours: float = Field(24.0, gt=0, description="Hours for which the response to an `Idempotency-Key` is kept.")
    bell_hours: float = Field(24.0, gt=0, description="Hours for which the times of notifications to workers are kept.")
    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR.")
    log_json: bool = Field(True, description="Log JSON lines. `false`: log readable text.")
    max_body_bytes: int = Field(1_000_000, gt=0, description="Maximum size of a request body in bytes.")
    requests_per_minute: int = Field(
        1200,
        ge=0,
        description="Rate limit per API key, or per address without a valid key, in each API process. 0: no limit. "
        "Not applied if no keys are required.",
    )
    cors_origins: str = Field(
        "",
        description="Origins whose pages may call the API with a key, separated by commas (`https://app.example`). "
        "Empty: only its own.",
    )

    @cached_property
    def resolved_database_url(self) -> str:
        """The database URL, with the default for embedded installations."""
        return self.database_url or f"sqlite:///{self.data_dir.expanduser().resolve() / 'featurewatch.db'}"

    @cached_property
    def artifacts_uri(self) -> str:
        """The URI of the artifact store, with the default for embedded installations."""
        return self.artifacts or f"file://{self.data_dir.expanduser().resolve() / 'artifacts'}"

    @cached_property
    def root_dirs(self) -> tuple[Path, ...]:
        """Local folders that may be read from, resolved."""
        return tuple(Path(root).expanduser().resolve() for root in self.roots.split(":") if root)

    @cached_property
    def store_prefixes(self) -> tuple[str, ...]:
        """URL prefixes of hubs and object stores that may be read from."""
        return tuple(prefix.strip() for prefix in self.stores.split(",") if prefix.strip())

    @property
    def cache_dir(self) -> Path:
        """Folder of fetched and converted models."""
        return self.data_dir / "cache"

    @cached_property
    def old_secret_keys(self) -> tuple[str, ...]:
        """Earlier secret keys."""
        return tuple(key.strip() for key in self.secret_key_old.get_secret_value().split(",") if key.strip())

    @cached_property
    def cors_origin_list(self) -> list[str]:
        """Origins whose pages may call the API."""
        return [origin.strip() for origin in self.cors_origins.split(",") if origin.strip()]

    def environment(self) -> dict[str, str]:
        """These settings as environment variables for a child process. Secrets are in plain text."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        plain = {name: v.get_secret_value() if isinstance(v, SecretStr) else str(v) for name, v in values.items()}
        return {f"FEATUREWATCH_{name.upper()}": value for name, value in plain.items()}


class TelemetrySettings(BaseSettings):
    """The standard variables that enable OpenTelemetry. Its SDK reads the others itself."""

    model_config = SettingsConfigDict(env_prefix="OTEL_", extra="ignore", frozen=True)

    traces_exporter: str = Field("none", description="`otlp` or `console` enables traces. Needs the extra `otel`.")
    sdk_disabled: bool = Field(False, description="`true` disables OpenTelemetry entirely.")


class ClientSettings(BaseSettings):
    """Settings of the CLI and the client: URL and key of the service."""

    model_config = SettingsConfigDict(env_prefix="FEATUREWATCH_", extra="ignore", frozen=True)

    url: str = Field("http://127.0.0.1:8000", description="URL of the service.")
    key: SecretStr = Field(
        SecretStr(""), description="API key, `fw_...`. Empty: none, which is enough for `featurewatch up`."
    )


class JobSettings(BaseSettings):
    """Variables that a CI system sets for its jobs."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True, env_ignore_empty=True)

    github_step_summary: Path | None = Field(None, description="File that GitHub shows on the page of the job.")
