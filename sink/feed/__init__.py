"""The live feed's sink: what differs from a replay's."""
