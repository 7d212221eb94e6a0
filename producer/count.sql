-- Counts of the account's rows in one window of ids, by whether the type is in scope and by type. `since` is the job's
-- condition on created_at; a row whose created_at is not in the years 1 to 9999 cannot become an activity log.
SELECT COALESCE(auditable_type = ANY(%(scope)s::text[]), false), COALESCE(auditable_type, '')::text,
       count(*) FILTER (WHERE {since}), count(*) FILTER (WHERE created_at IS NULL),
       count(*) FILTER (WHERE {since} AND (created_at >= '0001-01-01 00:00:00+00'
                                           AND created_at < '10000-01-01 00:00:00+00') IS NOT TRUE),
       min(id)::bigint, max(id)::bigint, min(created_at) FILTER (WHERE isfinite(created_at))
FROM {table}
WHERE id > %(cursor)s AND id <= %(window_end)s AND {account}
GROUP BY auditable_type
