"""`crm-replay subject`: the data of one CRM person, exported, or purged with a certificate.

model  pure: a person's data in a record, the certificate
find   I/O: documents, topics, reference tables, and where the person still occurs
purge  I/O: tombstones, documents, topics, in that order
"""
