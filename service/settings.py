"""All settings: environment variables ``LAPLORA_*`` and the flags of ``python -m service``."""

from __future__ import annotations

import math
import re
from inspect import cleandoc
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from laplora.errors import ConfigError
from laplora.models.spread import Spread
from laplora.remote.address import is_address, parse_address
from laplora.upstream.asking import ANY_MODEL, Upstream

#: As a browser writes it in the Origin header: lower case, no path, the scheme's own port left out.
_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:\d{1,5})?|https?://\[[0-9a-f:]+\](:\d{1,5})?")
#: The pattern of a host, in lower case.
_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?")
#: Tokens that wait at most where ``max_queue_tokens`` is unset, and batches where these have more: with half of them a
#: caller keeps a device busy beside another one.
QUEUE_TOKENS, QUEUE_BATCHES = 65_536, 4
#: A duration in seconds, above 0; a delay may be none.
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Delay = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Settings(BaseSettings):
    """Serve a laplora artifact over HTTP: calibrated probabilities and uncertainty at /predict.

    Every flag can also be set by the environment variable named beside it; a flag wins. With --keys FILE or
    --auth off and no other, the small default artifact is served at http://127.0.0.1:8000, its documentation at /docs.

    Exit status: 0 stopped, 1 the artifact or the address cannot be served, 2 a wrong setting, 75 the device failed
    or hung and a new start may help.
    """

    model_config = SettingsConfigDict(
        env_prefix="LAPLORA_",
        frozen=True,
        cli_prog_name="python -m service",
        cli_kebab_case=True,
        cli_show_env_vars=True,
        cli_hide_none_type=True,
        use_attribute_docstrings=True,
    )

    artifact: str = Field("fields-smollm2", min_length=1)
    """Artifact to serve: a folder's path, a name in the artifacts root, or where it lies: hf://OWNER/NAME@REVISION,
    s3://BUCKET/FOLDER, gs://BUCKET/FOLDER or https://HOST/FOLDER, and to pin it #sha256=DIGEST.
    """
    artifacts_root: Path = Path("artifacts")
    """Folder whose sub-folders are the artifacts that can be activated by name."""
    also_load: Annotated[tuple[str, ...], NoDecode] = ()
    """Names in the artifacts root, or addresses, with commas between, of further artifacts that are loaded at the
    start; on the same base model. Requests choose one by name.
    """
    allowed_bases: Annotated[tuple[str, ...], NoDecode] = ()
    """Base models, with commas between, that an artifact at an address may have: names, folders or addresses; NAME/* is
    all below one, * is any. Beside them it may have an offline model, a base in its own bucket, server or repository,
    and one of the hub at a commit, or at any revision where the artifact itself is pinned.
    """
    max_fetch_bytes: int = Field(16 * 2**30, ge=1)
    """Most bytes of an artifact that is fetched from an address."""
    max_fetch_files: int = Field(4096, ge=1)
    """Most files of an artifact that is fetched from an address."""
    max_base_bytes: int = Field(256 * 2**30, ge=1)
    """Most bytes of a base model that is fetched from an address, or from the hub for an artifact that was fetched."""
    max_artifacts: int = Field(8, ge=1)
    """Most artifacts that are loaded at once; the least recently used idle one goes for another."""
    max_artifact_bytes: int = Field(2 * 2**30, ge=1)
    """Most bytes of adapters and posteriors that are loaded at once, the base model not counted."""
    cache: Path | None = None
    """Folder of cached base models and of what was fetched; unset: the user's cache folder (XDG_CACHE_HOME/laplora)."""
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """Device to run on: auto, cpu, cuda or cuda:N."""
    device_map: str | None = Field(None, min_length=1)
    """How the base model is spread over the GPUs of this server: auto, balanced, balanced_low_0, sequential, or a JSON
    object of each module's GPU by the module's path; with device at auto; unset: it is on the one device.
    """
    max_memory: str | None = Field(None, min_length=1)
    """Most weights on each GPU with device_map, as a JSON object such as {"0": "20GiB", "1": "20GiB"}; the batches'
    activations come on top; unset: what is free there.
    """
    dequantize: Literal["auto", "always", "never"] = "auto"
    """Whether 4-bit weights are expanded once at load: the same numbers, faster on a CPU, in four times the memory;
    auto: on a CPU with the memory for it.
    """
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every interface."""
    port: int = Field(8000, ge=0, le=65535)
    """TCP port to listen on; 0 takes a free one and logs it."""
    trusted_proxies: str = ""
    """Addresses or networks of reverse proxies, with commas between, whose forwarded headers say who calls; unset:
    none, and the caller is who connects.
    """
    head_timeout_s: Seconds = Field(10.0, le=3600)
    """Seconds in which a request's line and headers must have come before its connection is closed."""
    keep_alive_s: Seconds = Field(75.0, le=3600)
    """Seconds after which a connection that no request comes on is closed: more than a proxy keeps one for its next
    request (60 in most), or such a request meets the close and the proxy answers it with 502.
    """
    send_timeout_s: Seconds = Field(30.0, le=3600)
    """Seconds in which a client must take 64 KiB of a waiting answer, or all that is left, before it is closed."""
    max_connections: int = Field(2048, ge=1)
    """Most connections at a time, fewer where the process may open fewer files; one more ends the one that is idle for
    longest, or gets 429.
    """
    auth: Literal["keys", "off"] = "keys"
    """Who is answered: holders of an API key, or, off, everyone who can reach the port."""
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Names, with commas between, that the server may be called by where auth is off, beside localhost, any IP address
    and host; another is answered 421, for a web page can have a name of its own lead here. * is any.
    """
    keys: Path | None = None
    """JSON file of API keys, made by 'python -m service.keys create'; read again when it changes."""
    cors_origins: str = ""
    """Origins whose web pages may call the server, with commas between, such as https://app.example; unset: none."""
    max_requests: int = Field(512, ge=1)
    """Most POST requests at once, but for those that load or unload an artifact or cancel a job; more get 429."""
    max_in_flight_bytes: int | None = Field(None, ge=1024)
    """Most bytes of the bodies of requests at once, uploads of jobs not counted; more get 429 unread; unset: eight
    bodies of max_body_bytes for each caller's share.
    """
    batch_tokens: int | None = Field(None, ge=1)
    """Most padded tokens of one device batch (rows times the longest row); unset: 512 on a CPU, measured on a GPU as an
    artifact is loaded. 1 lets every row run alone: no other request can change a digit of an answer.
    """
    max_queue_tokens: int | None = Field(None, ge=1)
    """Most tokens that wait for the device, estimated until a text is tokenised; more are refused with 429; unset:
    65,536, or four batches where these have more.
    """
    max_queue_rows: int = Field(2048, ge=1)
    """Most inputs that wait; more are refused with 429."""
    max_tokenize_bytes: int | None = Field(None, ge=1024)
    """Most bytes of text that wait to be tokenised; more get 429; unset: two bodies of max_body_bytes for each caller's
    share.
    """
    client_share: float = Field(0.5, gt=0, le=1, allow_inf_nan=False)
    """Most that one caller gets of the queue's rows, tokens and bytes that the others leave, and of max_requests, while
    others are there (a caller alone may have all); that it ever has of max_in_flight_bytes, max_jobs_bytes and
    max_job_downloads, one request of the queue, and one address, but for trusted_proxies, of max_connections.
    """
    max_inputs: int = Field(256, ge=1)
    """Most inputs of one request; more are refused with 413."""
    max_body_bytes: int = Field(4 * 2**20, ge=1024)
    """Most bytes of one request body; more are refused with 413."""
    jobs_dir: Path | None = None
    """Folder that large evaluations are kept in, for one server at a time unless jobs_url is set; one that holds other
    files is not used; unset: the user's state folder (XDG_STATE_HOME/laplora/jobs).
    """
    jobs_url: SecretStr | None = None
    """PostgreSQL that several servers keep their large evaluations in and share the work of, as
    postgresql://USER:PASSWORD@HOST/DATABASE, best with ?sslmode=verify-full; needs the extra postgres. They need the
    same artifacts, and a jobs_dir or jobs_files_url that all of them reach. Unset: SQLite in jobs_dir.
    """
    deployment: str = Field("laplora", min_length=1)
    """Name of the servers that serve the same: what one of them loads, activates, unloads or conditions, the others of
    jobs_url do too, and those that start begin with it. New settings that name artifacts begin it anew.
    """
    jobs_password_file: Path | None = None
    """File that has the password of jobs_url, in place of one in the URL; it is read when the database is opened."""
    jobs_timeout_s: Seconds = Field(10.0, le=60)
    """Seconds that the database of jobs_url may take to connect, for one statement, and between two of a transaction;
    jobs that wait twice as long for it are 503.
    """
    jobs_files_url: str | None = Field(None, pattern=r"^s3://[^\s/]+(/\S*)?$")
    """S3 store that the uploads of large evaluations are kept in, as s3://BUCKET/FOLDER; needs the extra s3, and reads
    the variables AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL and the like. Unset: in jobs_dir.
    """
    job_lease_s: Seconds = Field(15.0, le=3600)
    """Seconds after which the jobs of a server that is not heard of go to the others that share jobs_url."""
    max_kept_job_bytes: int = Field(8 * 2**30, ge=0)
    """Most bytes of finished jobs' uploads and answers that are kept; beyond it the oldest finished job of the caller
    with the most goes.
    """
    max_job_downloads: int = Field(8, ge=1)
    """Most downloads of jobs' rows, and reports of jobs, that are made at once; more are refused with 429."""
    job_download_timeout_s: Seconds = Field(3600.0, le=86_400)
    """Seconds after which a download of a job's rows is cut off: it goes on with `after`."""
    max_job_bytes: int = Field(256 * 2**20, ge=1024)
    """Most bytes of one job's upload; more are refused with 413."""
    max_job_rows: int = Field(100_000, ge=1)
    """Most inputs of one job's upload, one a line; more are refused with 413."""
    max_jobs_bytes: int | None = Field(None, ge=1024)
    """Most bytes of all uploads under way and of unfinished jobs, with what their answers take at most, of which one
    caller may hold client_share; an upload that does not fit now is refused with 429, one that never would with 413;
    unset: four uploads of max_job_bytes for each caller's share.
    """
    max_job_bad_rows: int = Field(100, ge=0, le=10_000)
    """Most rows of one job that may have no answer: they are left out and reported; with more the job fails."""
    max_jobs: int = Field(100, ge=1, le=10_000)
    """Most jobs kept; a new one takes the place of the oldest finished one of the caller with the most, or gets 429."""
    max_jobs_per_caller: int = Field(20, ge=1)
    """Most unfinished jobs of one caller; more are refused with 429."""
    job_upload_timeout_s: Seconds = Field(600.0, le=86_400)
    """Seconds a job's upload may take before a 504."""
    job_upload_idle_s: Seconds = Field(20.0, le=86_400)
    """Seconds that a job's upload may bring nothing, while the server waits for it, before a 504."""
    job_wait_s: Seconds = 86_400.0
    """Seconds that a job waits, while the server runs, for its artifact to be loaded, before it fails; of servers that
    share jobs_url, for one that has its artifact and its upload.
    """
    job_pause_s: Seconds = Field(15.0, le=3600)
    """Seconds between two tries of a job that waits for something, at most."""
    job_look_s: Seconds = Field(5.0, le=3600)
    """Seconds between two looks at the jobs: for those whose time is over, for those of servers that share jobs_url,
    and for the folder, where it could not be had.
    """
    job_keep_s: Seconds = 7 * 86_400.0
    """Seconds that a finished job and its result are kept."""
    request_timeout_s: Seconds = Field(120.0, le=3600)
    """Seconds a request may take in all before a 504."""
    stall_s: Seconds = Field(120.0, le=86_400)
    """Seconds after which one run of the device that has not ended makes the server not ready, until it ends."""
    hang_s: Seconds | None = Field(None, le=604_800)
    """Seconds after which one run of the device that has not ended ends the process with status 75, so that it is
    started again; unset: five times stall_s.
    """
    load_timeout_s: Seconds = Field(1800.0, le=604_800)
    """Seconds that loading another artifact may take, a base model's download included, before it is given up."""
    drain_delay_s: Delay = Field(5.0, le=3600)
    """Seconds after SIGTERM in which readiness already fails while requests are still answered, so that load balancers
    notice. Ctrl-C waits for none.
    """
    drain_s: Delay = Field(30.0, le=3600)
    """Seconds that requests in flight may still take after that; what is left then gets a 503."""
    leave_s: Delay = Field(4.0, le=4)
    """Seconds in which the process leaves once nothing is answered any more: for answers on their way out, a batch
    under way and the last traces; after a device fault, for bodies on their way.
    """
    otlp_endpoint: str | None = Field(None, pattern=r"^https?://[^\s/]+[^\s]*$")
    """Base URL of an OpenTelemetry collector (OTLP over HTTP, such as http://127.0.0.1:4318) that gets a trace of every
    scored request; needs the extra telemetry; unset: no traces.
    """
    upstream_url: str | None = Field(None, min_length=1)
    """Server with the decision model whose answers an artifact corrects (POST /v1/systemone), asked for inputs that do
    not bring model_probs along; unset: every input has to.
    """
    upstream_key: SecretStr | None = None
    """Key that the decision model is asked with, as a bearer token; best from the environment, or from a file."""
    upstream_key_file: Path | None = None
    """File that has upstream_key, in place of it."""
    upstream_model: str | None = Field(None, min_length=1, max_length=256)
    """Name that the decision model is asked for by; unset: the one that the artifact was fitted to."""
    upstream_timeout_s: Seconds = Field(30.0, le=3600)
    """Seconds that one try of asking the decision model may take; a busy one is asked up to four times."""
    upstream_at_once: int = Field(8, ge=1, le=1024)
    """Most requests to the decision model at once."""
    upstream_unfitted: Literal["refuse", "pass"] = "refuse"
    """If another model answers, or a question of POST /v1/systemone is none that an artifact was fitted to: refuse
    (409, 422), or pass the model's answers as they are, flagged and for review.
    """
    feedback_keep_s: Seconds = Field(604_800.0, le=31_536_000)
    """Seconds that a prediction's probabilities are kept, without its input, for a true label to come."""
    conditioning: bool = False
    """Whether holders of the scope admin may condition artifacts on labels; the artifacts' folders must be writable."""
    max_condition_rows: int = Field(1000, ge=20, le=10_000)
    """Most labelled rows of one conditioning, and most calibration rows beside them; more are refused with 413."""
    feedback_rows: int = Field(100_000, ge=0, le=10_000_000)
    """Most predictions kept for feedback, about 350 bytes each at two classes, here and in the database of all servers
    of a deployment; the oldest go first. 0 keeps none, and predictions have no prediction_id.
    """
    feedback_window: int = Field(1000, ge=100, le=10_000)
    """Labelled predictions, and recent answers, of an artifact and predictive that figures are computed from."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe level logged."""
    log_format: Literal["json", "text"] = "json"
    """One JSON object or one line of text per event."""

    @field_validator("trusted_proxies")
    @classmethod
    def _are_addresses(cls, value: str) -> str:
        # uvicorn takes what it cannot parse for the name of a socket, and "*" for everybody: one would never match,
        # the other would let each client choose its own name.
        try:
            return ",".join(str(ip_network(part.strip())) for part in value.split(",") if part.strip())
        except ValueError as error:
            raise ValueError(f"expected IP addresses or networks with commas between them: {error}") from None

    @field_validator("artifact")
    @classmethod
    def _can_be_reached(cls, value: str) -> str:
        try:
            if is_address(value):
                parse_address(value)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return value

    @field_validator("also_load")
    @classmethod
    def _all_can_be_reached(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(cls._can_be_reached, value))

    @field_validator("also_load")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if twice := sorted({name for name in value if value.count(name) > 1}):
            shown = [str(parse_address(name)) if is_address(name) else name for name in twice]
            raise ValueError(f"these are named twice: {', '.join(shown)}")
        return value

    @field_validator("also_load", "allowed_bases", "allowed_hosts", mode="before")
    @classmethod
    def _split_names(cls, value: Any) -> Any:
        parts = [value] if isinstance(value, str) else value
        return tuple(name.strip() for part in parts for name in part.split(",") if name.strip())

    @field_validator("allowed_hosts")
    @classmethod
    def _are_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        names = tuple(name.lower().removesuffix(".") for name in value)
        for name in names:
            if name != "*" and not _NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no host's name: expected no scheme, no port and no path; or * for any")
        return names

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, value: str) -> str:
        origins = [part.strip() for part in value.split(",") if part.strip()]
        for origin in origins:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin!r} is no origin: expected scheme, host and perhaps port, no path and no *")
        return ",".join(origins)

    @model_validator(mode="after")
    def _requests_fit_the_queue(self) -> Settings:
        for largest, limit, bound in (
            ("max_inputs", "max_queue_rows", self.max_queue_rows),
            ("max_body_bytes", "max_tokenize_bytes", self.tokenize_bytes),
            ("max_body_bytes", "max_in_flight_bytes", self.in_flight_bytes),
        ):
            if getattr(self, largest) > int(bound * self.client_share):
                raise ValueError(
                    f"{largest} ({getattr(self, largest)}) is above client_share ({self.client_share:g}) of {limit} "
                    f"({bound}): the largest request could never be queued"
                )
        return self

    @model_validator(mode="after")
    def _lies_somewhere(self) -> Settings:
        try:
            spread = self.spread
        except ConfigError as error:
            raise ValueError(str(error)) from None
        if spread is not None and self.device != "auto":
            raise ValueError(f"device_map says where the base is, and so does device ({self.device}): leave it at auto")
        return self

    @property
    def upstream(self) -> Upstream | None:
        """The decision model that is asked; None: there is none. ConfigError: it cannot be, as it is set."""
        if self.upstream_url is None:
            return None
        key = None if self.upstream_key is None else self.upstream_key.get_secret_value()
        if self.upstream_key_file is not None:
            try:
                key = self.upstream_key_file.read_text(encoding="utf-8-sig").strip()
            except (OSError, ValueError):
                raise ConfigError(f"upstream_key_file {self.upstream_key_file} cannot be read") from None
        name, timeout_s, most = self.upstream_model or ANY_MODEL, self.upstream_timeout_s, self.upstream_at_once
        return Upstream(self.upstream_url, name, key or None, timeout_s=timeout_s, at_once=most)

    @model_validator(mode="after")
    def _asks_upstream(self) -> Settings:
        if self.upstream_key is not None and self.upstream_key_file is not None:
            raise ValueError("upstream_key and upstream_key_file are both set: one is enough")
        try:
            _ = self.upstream
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return self

    @model_validator(mode="after")
    def _hangs_stall_first(self) -> Settings:
        if self.hang_s is not None and self.hang_s < self.stall_s:
            raise ValueError(f"hang_s ({self.hang_s:g}) is below stall_s ({self.stall_s:g}): a run stalls first")
        return self

    @property
    def spread(self) -> Spread | None:
        """How the base model is spread over several devices; None: it is on ``device``."""
        return Spread.parsed(self.device_map, self.max_memory)

    @property
    def run_limit_s(self) -> float:
        """Seconds after which one run of the device is taken never to end."""
        return 5 * self.stall_s if self.hang_s is None else self.hang_s

    def queue_limits(self, batch_tokens: int, devices: int = 1) -> tuple[int, int, int]:
        """Return the most rows, tokens and bytes of text that wait for devices whose batches have so many tokens."""
        tokens = self.max_queue_tokens or max(QUEUE_TOKENS, QUEUE_BATCHES * batch_tokens)
        return self.max_queue_rows * devices, tokens * devices, self.tokenize_bytes

    @property
    def tokenize_bytes(self) -> int:
        """Most bytes of text that wait to be tokenised."""
        return self.max_tokenize_bytes or math.ceil(2 * self.max_body_bytes / self.client_share)

    @property
    def in_flight_bytes(self) -> int:
        """Most bytes of the bodies of requests that are answered at once."""
        return self.max_in_flight_bytes or math.ceil(8 * self.max_body_bytes / self.client_share)

    @property
    def jobs_bytes(self) -> int:
        """Most bytes of all uploads under way and of unfinished jobs."""
        return self.max_jobs_bytes or math.ceil(4 * self.max_job_bytes / self.client_share)

    @property
    def dequantize_weights(self) -> bool | None:
        """The value of ``dequantize`` for the library, which decides if it is None."""
        return {"auto": None, "always": True, "never": False}[self.dequantize]

    @property
    def artifact_path(self) -> Path:
        """Folder of the artifact to serve first, where it is no address: a name in the root, else a path."""
        named = self.artifacts_root / self.artifact
        is_name = Path(self.artifact).name == self.artifact and self.artifact not in (".", "..")
        return named if is_name and (named.is_dir() or not Path(self.artifact).is_dir()) else Path(self.artifact)


# --help prints the class's docstring as it stands, and a setting's meaning is one line there and in docs/api.md.
Settings.__doc__ = cleandoc(Settings.__doc__ or "")
for _field in Settings.model_fields.values():
    _field.description = " ".join((_field.description or "").split())
