"""Jobs: their documents in MongoDB, the rules for requests, and the requests themselves."""
