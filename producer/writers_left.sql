-- Whether any of these virtual transactions runs still, or is prepared: each holds a lock to its end.
SELECT EXISTS (SELECT FROM pg_locks WHERE virtualtransaction = ANY(%(writers)s::text[]))
