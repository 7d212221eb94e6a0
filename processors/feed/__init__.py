"""The live feed's processors: what they do differently from a replay's."""
