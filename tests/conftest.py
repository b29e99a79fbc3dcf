"""Shared pytest set-up: one torch thread, because the models here are too small to share out.

With several threads a 16 x 16 product costs more in waking them than in arithmetic, and sums could be
split differently from run to run.
"""

from __future__ import annotations

import torch

torch.set_num_threads(1)
