"""The services that show the curves of fine-tuning beside the terminal, each by a package of its own."""

from __future__ import annotations

from importlib.util import find_spec

from laplora.errors import ConfigError
from training.config.run import Reporter

#: By reporter the modules of which one must be there.
_MODULES: dict[str, tuple[str, ...]] = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
}


def check_reporters(wanted: tuple[Reporter, ...]) -> None:
    """Raise ConfigError where a reporter's package is not installed."""
    missing = [name for name in wanted if not any(find_spec(module) for module in _MODULES[name])]
    if missing:
        raise ConfigError(f"report_to: not installed: {', '.join(missing)}: pip install {' '.join(missing)}")
