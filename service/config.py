"""Settings. The only reader of the environment; every name of ours has the prefix `FEATUREWATCH_`."""

from functools import cached_property
from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Settings of a server or worker process, from `FEATUREWATCH_*` variables."""

    model_config = SettingsConfigDict(env_prefix="FEATUREWATCH_", extra="ignore", frozen=True)

    data_dir: Path = Field(
        Path("featurewatch-data"), description="Folder of the embedded installation: database, artifacts, caches."
    )
    private_files: bool = Field(
        True,
        description="Whether the data folder (0700) and what is written (0600) are for this process's user alone. "
        "`false`: as its umask says, for a folder that is shared with other users on purpose.",
    )
    database_url: str = Field(
        "", description="SQLAlchemy URL (`postgresql+psycopg://...`). Empty: SQLite in the data folder."
    )
    broker_url: str = Field(
        "", description="Redis or Valkey URL of the Celery doorbell. Empty: workers poll the database."
    )
    artifacts: str = Field("", description="fsspec URI of the artifact store. Empty: a folder in the data folder.")
    roots: str = Field(
        "",
        description="Local folders, separated by `:`, that checkpoints, corpora and activations may be read from.",
    )
    stores: str = Field(
        "hf://",
        description="Prefixes of URLs, separated by commas, that checkpoints may be read from beside `roots`: "
        "`hf://`, `hf://org`, `s3://bucket/models`. Empty: none.",
    )
    secret_key: SecretStr = Field(
        SecretStr(""),
        description="Encrypts the URLs and secrets of webhooks, and the cookies of the pages. Empty: made once and "
        "kept in the data folder (embedded installations).",
    )
    secret_key_old: SecretStr = Field(
        SecretStr(""),
        description="Earlier secret keys, separated by commas: what they encrypted still opens. Needed while the key "
        "is rotated (`featurewatch key rotate-secret`).",
    )
    require_keys: bool = Field(
        True, description="Whether requests need an API key. `featurewatch up` on a loopback address turns it off."
    )
    webhook_allow: str = Field(
        "", description="Networks (CIDR, separated by commas) that webhooks may reach although they are private."
    )
    webhook_seconds: float = Field(
        15.0, gt=0, le=30, description="How long a receiver of webhooks may take, from the connection to its answer."
    )
    webhook_pause_days: float = Field(
        5.0, ge=0, description="A webhook that only failed for so many days is paused, with an alert. 0: never."
    )
    webhook_keep_days: float = Field(
        30.0, ge=1, description="How long events and their deliveries are kept, waiting ones of paused webhooks too."
    )
    label_url: str = Field(
        "", description="OpenAI-compatible endpoint that labels features, up to `/v1`. Empty: none. Workers call it."
    )
    label_model: str = Field("", description="Its model.")
    label_key: SecretStr = Field(SecretStr(""), description="Its API key. Empty: none is sent. Only workers need it.")
    label_allow: str = Field(
        "", description="Networks (CIDR, separated by commas) that the endpoint may be in although they are private."
    )
    label_seconds: float = Field(60.0, gt=0, description="How long an answer of the endpoint may take.")
    lease_seconds: float = Field(
        60.0,
        gt=0,
        description="How long a worker that falls silent keeps its run. A process of it that gives no sign of life is "
        "killed after it.",
    )
    save_seconds: float = Field(
        20.0, gt=0, description="How often a fit under way saves itself: what a killed worker has to do again at most."
    )
    run_seconds: float = Field(
        172_800.0,
        ge=0,
        description="How long an attempt at a run may take; it then fails at its next step. 0: as long as it likes.",
    )
    run_grace_seconds: float = Field(
        600.0,
        gt=0,
        description="How much longer one that takes no step may go on, or a cancelled one: then its process is killed, "
        "and the run ends.",
    )
    poll_seconds: float = Field(1.0, gt=0, description="How often sweeps and polling workers look for work.")
    threads: int = Field(0, ge=0, description="CPU threads of a worker's torch. 0: as torch chooses.")
    device: str = Field("auto", description="`auto`, `cpu`, `cuda` or `cuda:N`: where workers compute.")
    fit_processes: int = Field(
        0, ge=0, description="Processes that share a fit. 0: one for each GPU that the worker has, one on a CPU."
    )
    share_harvests: bool = Field(
        True, description="Whether idle workers help with the harvests of others. Needs a broker."
    )
    shard_positions: int = Field(
        16_384,
        gt=0,
        description="Positions of a shard: what a harvest holds in memory, loses by a kill, and gives to a helper.",
    )
    keep_activations: int = Field(
        8,
        ge=0,
        description="Newest checkpoints of a family whose activations are kept, beside those that re-fits train on. "
        "0: of all.",
    )
    vacuum_hours: float = Field(
        24.0,
        ge=0,
        description="How long an artifact stays that nothing refers to. A copy of the artifact store must be done so "
        "soon after the database's backup. 0: for ever.",
    )
    audit_days: float = Field(365.0, ge=0, description="How long the audit log is kept. 0: for ever.")
    answer_hours: float = Field(24.0, gt=0, description="How long the answer to an `Idempotency-Key` is remembered.")
    bell_hours: float = Field(24.0, gt=0, description="How long it is known when workers were told of a run.")
    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR.")
    log_json: bool = Field(True, description="Logs as JSON lines; false: for people.")
    max_body_bytes: int = Field(1_000_000, gt=0, description="Largest request body that the API reads.")
    requests_per_minute: int = Field(
        1200,
        ge=0,
        description="Requests of one key, or of one address without a valid one, that an API process answers. "
        "0: no limit; nor is there one where no keys are required.",
    )
    cors_origins: str = Field(
        "",
        description="Origins, separated by commas (`https://app.example`), whose pages may call the API with a key. "
        "Empty: none but its own.",
    )

    @cached_property
    def resolved_database_url(self) -> str:
        """The database URL, with the embedded default filled in."""
        return self.database_url or f"sqlite:///{self.data_dir.expanduser().resolve() / 'featurewatch.db'}"

    @cached_property
    def artifacts_uri(self) -> str:
        """The artifact store's URI, with the embedded default filled in."""
        return self.artifacts or f"file://{self.data_dir.expanduser().resolve() / 'artifacts'}"

    @cached_property
    def root_dirs(self) -> tuple[Path, ...]:
        """Local folders that may be read from, resolved."""
        return tuple(Path(root).expanduser().resolve() for root in self.roots.split(":") if root)

    @cached_property
    def store_prefixes(self) -> tuple[str, ...]:
        """Prefixes of hub and object-store URLs that may be read."""
        return tuple(prefix.strip() for prefix in self.stores.split(",") if prefix.strip())

    @property
    def cache_dir(self) -> Path:
        """Where fetched and converted models are kept."""
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
        """These settings as environment variables, for a child process. Values are in the clear."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        plain = {name: v.get_secret_value() if isinstance(v, SecretStr) else str(v) for name, v in values.items()}
        return {f"FEATUREWATCH_{name.upper()}": value for name, value in plain.items()}


class TelemetrySettings(BaseSettings):
    """The standard variables that turn OpenTelemetry on or off; its SDK reads the others itself."""

    model_config = SettingsConfigDict(env_prefix="OTEL_", extra="ignore", frozen=True)

    traces_exporter: str = Field("none", description="`otlp` or `console` turns traces on. Needs the extra `otel`.")
    sdk_disabled: bool = Field(False, description="`true` turns all of it off.")


class ClientSettings(BaseSettings):
    """Settings of the CLI and the client: where the service is, and the key to it."""

    model_config = SettingsConfigDict(env_prefix="FEATUREWATCH_", extra="ignore", frozen=True)

    url: str = Field("http://127.0.0.1:8000", description="Where the service answers.")
    key: SecretStr = Field(
        SecretStr(""), description="API key, `fw_...`. Empty: none, as `featurewatch up` needs none."
    )


class JobSettings(BaseSettings):
    """What a CI system tells a job of itself, under its own names."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True, env_ignore_empty=True)

    github_step_summary: Path | None = Field(None, description="File that GitHub shows on the job's page.")
