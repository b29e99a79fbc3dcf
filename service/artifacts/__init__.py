"""Which artifacts answer: loaded, leased, swapped."""
