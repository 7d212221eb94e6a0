"""The live feed's sink: what it does differently from a replay's."""
