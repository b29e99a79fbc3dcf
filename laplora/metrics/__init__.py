"""How good probabilities are: scores, ranking of mistakes, noise, drift."""
