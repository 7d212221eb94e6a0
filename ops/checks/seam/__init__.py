"""The report about the seam between replay and live feed: around every contact's watermark, what neither side has
written and what both have.

matching.py  pure: which of the live feed's legacy documents is which row
check.py     the account's rows against its documents, page by page
"""
