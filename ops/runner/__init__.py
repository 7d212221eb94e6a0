"""One replay on this host, from the first check to the ledger, under a lease; and the daemon that claims jobs."""
