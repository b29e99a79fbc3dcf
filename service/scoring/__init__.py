"""From parsed inputs to predictions: tokenised, queued, batched, computed on the device."""
