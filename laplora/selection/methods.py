"""The names of the ways to choose."""

from __future__ import annotations

from typing import Literal, get_args

Method = Literal["information", "prediction", "entropy", "k_center", "random"]
#: How rows can be chosen.
METHODS: tuple[Method, ...] = get_args(Method)
