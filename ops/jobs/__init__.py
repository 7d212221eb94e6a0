"""What a job is and what it may do: its documents in MongoDB, the rules for requests, and the requests themselves."""
