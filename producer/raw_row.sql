-- Rows with their texts as the bytes that the database has: to SQL_ASCII nothing is converted, and nothing is refused.
SELECT id, created_at, convert_to(auditable_type, 'SQL_ASCII'), auditable_id, convert_to(associated_type, 'SQL_ASCII'),
       associated_id, convert_to(user_type, 'SQL_ASCII'), user_id, convert_to(username, 'SQL_ASCII'),
       convert_to(action, 'SQL_ASCII'), convert_to(changes, 'SQL_ASCII'), version, convert_to(remark, 'SQL_ASCII'),
       convert_to(request_uuid, 'SQL_ASCII'), owner
FROM (
{rows}
) AS raw (
    id, created_at, auditable_type, auditable_id, associated_type, associated_id, user_type, user_id, username, action,
    changes, version, remark, request_uuid, owner
)
ORDER BY id
