"""The names of MongoDB's collections, pure. Their indexes: `sink.indexes`; `ops.jobs.migrations` makes both."""

# The platform's own; of ours among them are the documents with our external id (`schemas.identity`).
ACTIVITY_LOGS = "activity_logs"
CONTACTS = "contacts"
CONTACT_ID_MAP = "crm_contact_id_map"

# Ours.
JOBS = "crm_activity_log_migration_jobs"
PROGRESS = "crm_replay_progress"  # the sinks' counts, by job, run and partition
COUNTERS = "crm_replay_counters"
CHECKPOINTS = "crm_replay_checkpoints"  # the snapshot's cursors, by job, run and id range
RETRIES = "crm_replay_retries"  # of dead letters, one document an attempt; a feed's has `feed` and no account
FLAGS = "crm_replay_flags"
TASKS = "crm_replay_tasks"
AUDIT_LOG = "crm_replay_audit_log"
ENRICHMENTS = "crm_replay_enrichments"  # one document an account: the position of its enrichment
FEEDS = "crm_replay_feeds"
SEALS = "crm_replay_seals"  # id segments that were proved equal, and by which fingerprints
APPLIED_MIGRATIONS = "crm_replay_migrations"  # the steps that are done
