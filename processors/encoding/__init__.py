"""From a decision to the bytes of its document: what MongoDB can hold, and BSON written without a dictionary."""
