"""Limits of one `audited_changes`, far above what a CRM writes; beyond them it is unreadable, with the reason."""

# 64 levels of YAML or JSON end as about 70 of BSON; MongoDB takes 100.
DEPTH_MAX = 64

# Nodes after aliases are expanded (a billion laughs is a billion nodes). 20,000 take libyaml and us about 50 ms.
NODES_MAX = 20_000

# Characters of a YAML text, and again of what its aliases expand to. libyaml reads a million in about 50 ms.
YAML_LENGTH_MAX = 1_000_000

# Characters of a key that is a collection, as JSON text.
JSON_KEY_LENGTH_MAX = 10_000

# A text longer than MongoDB's largest document is not even looked at: the outcome is document_too_large.
LENGTH_MAX = 16 * 1024 * 1024


class UnreadableError(Exception):
    """Inside this package: the text cannot be read; the message is one line without any of its content."""


class EncryptedError(UnreadableError):
    """The text is a message of ActiveRecord's encryption."""

    def __init__(self) -> None:
        """The message names what the text looks like."""
        super().__init__(
            "encrypted by ActiveRecord (JSON of a payload p and headers h with iv and at);"
            " reading it needs the application's keys"
        )
