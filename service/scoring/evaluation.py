"""``laplora.answers.evaluation`` under its former name, for ``service.jobs``."""

from laplora.answers.evaluation import REFERENCE as REFERENCE
from laplora.answers.evaluation import MethodRow as MethodRow
from laplora.answers.evaluation import all_finite as all_finite
from laplora.answers.evaluation import measure_method as measure_method
from laplora.answers.evaluation import method_rows as method_rows
from laplora.answers.evaluation import questions as questions
