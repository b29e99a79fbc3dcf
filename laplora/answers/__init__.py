"""From what the members of an artifact say of a batch to its answers."""
