"""Which posteriors have covariances between rows: the joint ones, where every contrast is computed."""

from __future__ import annotations

from laplora.errors import ConfigError
from laplora.posterior.base import Posterior
from laplora.posterior.joint import JointPosterior


def joint_of(posterior: Posterior, what: str) -> JointPosterior:
    """Return a posterior whose rows vary together.

    Raises:
        ConfigError: another structure, or directions in place of contrasts; ``what`` names what needs the covariances.
    """
    if isinstance(posterior, JointPosterior):
        return posterior
    raise ConfigError(
        f"{what} takes the covariance between rows, which this posterior of structure {posterior.structure!r} does not "
        "have: use structure joint_core, joint or exact, and so few classes that every contrast is computed"
    )
