-- Seconds that a replica is behind its primary; NULL for a primary.
SELECT CASE WHEN NOT pg_is_in_recovery() THEN NULL
            WHEN pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() THEN 0::float8
            ELSE COALESCE(extract(epoch FROM now() - pg_last_xact_replay_timestamp())::float8, 0::float8) END
