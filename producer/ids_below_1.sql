-- The first ids in scope below 1, which Rails never assigns, and how many there are.
SELECT id::bigint, count(*) OVER ()
FROM {table}
WHERE id < 1 AND auditable_type = ANY(%(scope)s::text[]) AND {since} AND {account}
ORDER BY id LIMIT %(named_max)s
