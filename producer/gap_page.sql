-- The rows in scope at ids that had no row when they were first read.
WITH audit AS (
    SELECT late.* FROM unnest(%(lows)s::bigint[], %(highs)s::bigint[]) AS gap (low, high)
    CROSS JOIN LATERAL (
        SELECT id, created_at, auditable_type, auditable_id, associated_type, associated_id, user_type, user_id,
               username, action, audited_changes, version, comment, request_uuid, {owner} AS owner
        FROM {table}
        WHERE id >= gap.low AND id <= gap.high
          AND auditable_type = ANY(%(scope)s::text[]) AND {since} AND {account}
        ORDER BY id LIMIT %(page_rows)s
    ) AS late
    ORDER BY id LIMIT %(page_rows)s
)
