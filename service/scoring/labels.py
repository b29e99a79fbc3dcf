"""``laplora.answers.labels`` under its former name, for ``service.jobs``."""

from laplora.answers.labels import LabelNames as LabelNames
from laplora.answers.labels import Truth as Truth
