-- The first ids of a window that more than one row in scope has, and how many there are.
SELECT id::bigint, count(*) OVER ()
FROM {table}
WHERE id > %(cursor)s AND id <= %(window_end)s AND auditable_type = ANY(%(scope)s::text[]) AND {since} AND {account}
GROUP BY id HAVING count(*) > 1
ORDER BY id LIMIT %(named_max)s
