"""``laplora.answers.reporting`` under its former name, for ``service.jobs``."""

from laplora.answers.reporting import BY_LABEL as BY_LABEL
from laplora.answers.reporting import MeasuredRows as MeasuredRows
from laplora.answers.reporting import measured_report as measured_report
