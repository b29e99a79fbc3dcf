"""Labels that come after training: conditioning on them, beside training again with them."""
