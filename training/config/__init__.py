"""The one configuration of a training run.

Read ``run`` first: :class:`RunConfig` and how a YAML file and ``--set`` become one. ``sections`` and
``optimizer`` hold its parts, each field with its description; ``size_defaults`` says what is taken where it names no
learning rate or length, and ``folders`` which folder its results lie in.
"""

from laplora.settings import Section
from training.config.optimizer import OptimizerConfig
from training.config.run import RunConfig, bad_fields, config_hash_fields, load_config
from training.config.sections import (
    AdapterConfig,
    BaseConfig,
)
from training.data.section import DataConfig

__all__ = [
    "AdapterConfig",
    "BaseConfig",
    "DataConfig",
    "OptimizerConfig",
    "RunConfig",
    "Section",
    "bad_fields",
    "config_hash_fields",
    "load_config",
]
