"""The contract between processes. Pure, and imports nothing else of ours.

source/   how a CRM's rows are read, pure
process/  what every process does at its start
"""

from schemas import compiled

compiled.install()
