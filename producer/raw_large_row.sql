-- A large row with its texts as the bytes that the database has.
SELECT convert_to(changes, 'SQL_ASCII'), convert_to(remark, 'SQL_ASCII'), changes_bytes, remark_bytes, owner
FROM (
{rows}
) AS raw (changes, remark, changes_bytes, remark_bytes, owner)
