-- Whether any of these virtual transactions is still open or prepared: each holds a lock until its end.
SELECT EXISTS (SELECT FROM pg_locks WHERE virtualtransaction = ANY(%(writers)s::text[]))
