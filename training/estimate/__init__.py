"""What a run will take, before anything is loaded: memory and least times of every step, on any card.

The library's own code runs once on the meta device, where tensors have shapes and no memory. Read ``run`` first, then
``shapes`` (the model), ``trace`` (the meter) and ``cards`` (what a card can do).
"""

from training.estimate.cards import CARDS, Card
from training.estimate.run import RunEstimate, StepCost, estimate
from training.estimate.shapes import held_bytes, shape_model

__all__ = ["CARDS", "Card", "RunEstimate", "StepCost", "estimate", "held_bytes", "shape_model"]
