"""The parts of a deployment, and the flags for them; no Ray, so that --help need not wait for it."""

from __future__ import annotations

from inspect import cleandoc
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator
from pydantic_settings import CliSettingsSource, SettingsConfigDict

from laplora.errors import ConfigError
from laplora.remote.address import is_address
from service.settings import Settings


class Sizes(BaseModel):
    """How many scorers there are, and what each takes."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    scorers: int = Field(1, ge=1)
    """Scorers, or the fewest of them."""
    max_scorers: int | None = Field(None, ge=1)
    """Most scorers; unset: as many as scorers, and nothing is scaled."""
    scorer_cpus: float = Field(1.0, ge=0)
    """CPU cores of a scorer."""
    ingress_cpus: float = Field(1.0, ge=0)
    """CPU cores of the ingress."""
    target_tokens: int = Field(8192, ge=1)
    """Tokens that may wait at one scorer before there should be more of them."""
    upscale_delay_s: float = Field(10.0, ge=0)
    """Seconds for which more scorers must have been wanted."""
    downscale_delay_s: float = Field(300.0, ge=0)
    """Seconds for which fewer scorers must have been wanted."""
    max_surge_percent: int = Field(0, ge=0, le=100)
    """Per cent of the scorers, and of the one ingress, that an update starts before it stops as many, where the cluster
    has room for them; 0: each old one stops first."""

    @model_validator(mode="after")
    def _check_bounds(self) -> Sizes:
        if self.max_scorers is not None and self.max_scorers < self.scorers:
            raise ValueError(f"max_scorers ({self.max_scorers}) is below scorers ({self.scorers})")
        return self

    @property
    def most_scorers(self) -> int:
        """How many scorers there may be."""
        return self.max_scorers or self.scorers


class Cluster(Sizes):
    """The parts of a deployment: the arguments of ``build``, under ``args`` of an application of Ray Serve."""

    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings of the server, as of ``python -m service``; those not given come from the environment."""
    scorer_gpus: float = Field(0.0, ge=0)
    """GPUs of a scorer."""
    library: str = "service.artifacts.predictors:default_library"
    """Import path of what makes the ``Library``; another one in tests."""


class Flags(Sizes, Settings):
    """Serve a laplora artifact over HTTP by scorers of a Ray cluster: that of RAY_ADDRESS, else one of this machine.

    The flags are those of python -m service, and how many scorers there are. In place of them one JSON file may be
    given, as docs/ray.md has it: python -m service.ray_serve FILE.

    Exit status: 0 stopped, 1 the application cannot be served, 2 a wrong setting.
    """

    model_config = SettingsConfigDict(cli_prog_name="python -m service.ray_serve")

    scorer_gpus: float | None = Field(None, ge=0)
    """GPUs of a scorer; unset: one, where the cluster has one for each and the device is not cpu."""

    @classmethod
    def given(cls, arguments: list[str]) -> dict[str, Any]:
        """Return what a command line says, and the environment does not, by field."""
        flags: dict[str, Any] = CliSettingsSource(cls, cli_parse_args=arguments)()
        return flags

    def cluster(self, given: dict[str, Any], gpus: float) -> Cluster:
        """Return the cluster; of the settings only what the command line gives: a node has an environment of its own.

        Args:
            given: as of ``given``; gpus: that the cluster has.

        Raises:
            ConfigError: a secret, which Ray would show, or fewer GPUs than scorers.
        """
        settings = {name: value for name, value in given.items() if name in Settings.model_fields}
        for name in settings:
            value = getattr(self, name)
            if isinstance(value, SecretStr):
                raise ConfigError(f"Ray shows what it is told: give LAPLORA_{name.upper()} in place of the flag")
            if isinstance(value, Path):
                settings[name] = str(value.absolute())
        if "artifact" in settings and not is_address(self.artifact) and self.artifact_path.is_dir():
            settings["artifact"] = str(self.artifact_path.absolute())
        sizes = self.model_dump(include=set(Sizes.model_fields))
        return Cluster(settings=settings, scorer_gpus=self._gpus(gpus), **sizes)

    def _gpus(self, gpus: float) -> float:
        if self.scorer_gpus is not None:
            return self.scorer_gpus
        if self.device_map is not None:
            raise ConfigError(
                "--device-map spreads the base of each scorer over its GPUs: say how many by --scorer-gpus"
            )
        if self.device == "cpu" or (self.device == "auto" and not gpus):
            return 0.0
        if gpus < self.most_scorers:
            raise ConfigError(
                f"{self.most_scorers} scorers would need a GPU each, and the cluster has {gpus:g}: --scorer-gpus 0.5 "
                "lets two share one, --device cpu takes none"
            )
        return 1.0


Flags.__doc__ = cleandoc(Flags.__doc__ or "")
