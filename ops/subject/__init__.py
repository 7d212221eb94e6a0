"""`crm-replay subject`: what is kept about one CRM person, exported, or purged with a certificate.

model  pure: what a record says of a person, the certificate
find   I/O: documents, topics, reference tables, and where the person stands still
purge  I/O: tombstones, documents, topics, in that order
"""
