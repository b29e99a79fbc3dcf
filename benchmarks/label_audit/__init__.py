"""How many of the labels that an audit lists are wrong, and what correcting them gains."""
