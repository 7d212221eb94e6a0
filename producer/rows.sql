-- The account's rows in a range of ids, unconverted, for their fingerprint: every column that page.sql and row.sql use.
COPY (
    SELECT id, created_at, auditable_type, auditable_id, associated_type, associated_id, user_type, user_id, username,
           action, audited_changes, version, comment, request_uuid
    FROM {table}
    WHERE id > %(cursor)s AND id <= %(last)s
      AND auditable_type = ANY(%(scope)s::text[]) AND {since} AND {account}
    ORDER BY id
) TO STDOUT (FORMAT binary)
