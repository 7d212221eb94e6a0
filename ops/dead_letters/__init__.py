"""Dead letters of a job or a feed: listed with what has become of their rows, and sent through the topology again."""
