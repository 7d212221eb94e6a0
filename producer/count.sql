-- What is in scope among the ids of one window. A row without created_at can be in no date range, so it is told apart.
SELECT count(*) FILTER (WHERE created_at >= COALESCE(%(start)s, created_at)), count(*) FILTER (WHERE created_at IS NULL),
       min(id)::bigint, max(id)::bigint, min(created_at) FILTER (WHERE isfinite(created_at))
FROM {table}
WHERE id > %(cursor)s AND id <= %(window_end)s AND auditable_type = ANY(%(scope)s::text[]) AND {account}
