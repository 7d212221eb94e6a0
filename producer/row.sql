-- The rest of every query that reads rows: `audit` with the fields of an AuditEvent. NULL becomes '' or 0, a created_at of
-- NULL becomes -infinity, the changes are cast to text. A row whose texts have more than size_max bytes comes without them
-- (NULL): large_row.sql fetches it. The last column is the source's tag, if the row is the account's: if a pooler or proxy
-- mixes up statements or answers, the rows lack it.
SELECT id::bigint, COALESCE(created_at, '-infinity'), COALESCE(auditable_type, '')::text, COALESCE(auditable_id, 0)::bigint,
       COALESCE(associated_type, '')::text, COALESCE(associated_id, 0)::bigint, COALESCE(user_type, '')::text,
       COALESCE(user_id, 0)::bigint, COALESCE(username, '')::text, COALESCE(action, '')::text,
       CASE WHEN octet_length(changes) + octet_length(remark) <= %(size_max)s THEN changes END, COALESCE(version, 0)::bigint,
       CASE WHEN octet_length(changes) + octet_length(remark) <= %(size_max)s THEN remark END,
       COALESCE(request_uuid::text, ''), owner
FROM audit
CROSS JOIN LATERAL (  -- printed once: without OFFSET 0 the planner repeats the expressions
    SELECT COALESCE(audited_changes::text, '') AS changes, COALESCE(comment, '')::text AS remark OFFSET 0
) AS printed
ORDER BY id
