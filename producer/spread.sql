-- The distribution of the ids from the last ANALYZE: bounds with the same number of rows between them.
SELECT histogram_bounds::text::bigint[] FROM pg_catalog.pg_stats
WHERE schemaname = %(schema)s AND tablename = %(relation)s AND attname = 'id'
