"""Dead letters of a job or a feed: listed with the state of their rows, and retried through the topology."""
