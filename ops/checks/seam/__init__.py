"""The report on the handover between replay and live feed: rows around every contact's watermark that neither side has
written, or both.

matching.py  pure: which of the live feed's legacy documents is which row
check.py     the account's rows against its documents, page by page
"""
