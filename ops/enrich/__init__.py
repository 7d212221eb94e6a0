"""The enrichment: association logs get the ids and names that they lacked when they were written."""
