"""The enrichment: adds to association logs the ids and names that they lacked when they were written."""
