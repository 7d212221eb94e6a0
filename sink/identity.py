"""Pure: which rows have a document, as numbers that two sides can compare: by id range, how many, and a checksum.

Counts alone can agree by chance: a document that is gone and one too many make a right number. So the sink adds up the
ids of the rows whose documents it has written or met, and the end of a run adds up those of the documents. A checksum
is a sum of scrambled ids, in whatever order; where both figures of a range are the same, so are its ids.
"""

from collections.abc import Iterable, Mapping, Sequence

RANGES_BITS = 6  # an account's ids are told apart in up to 64 ranges
ALL_IN_ONE = 64  # a shift that leaves one range
_SPREAD = 0x9E3779B97F4A7C15  # odd, and near 2**64 / 1.618: neighbours go far from each other
_UPPER = 2**64 - 1
_SUM = 2**63 - 1  # as large a number as MongoDB keeps

Figure = tuple[int, int]  # how many ids, and their checksum
Identities = Mapping[int, Figure]  # by range: an id shifted to the right


def shift_of(top_audit_id: int) -> int:
    """Return by how many bits an id is shifted to give its range, where `top_audit_id` is the newest."""
    return max(0, top_audit_id.bit_length() - RANGES_BITS)


def ids_of(id_range: int, shift: int) -> tuple[int, int]:
    """Return the id below the first of a range, and its last."""
    return (id_range << shift) - 1, ((id_range + 1) << shift) - 1


def with_ids(known: Identities, audit_ids: Sequence[int], shift: int) -> Identities:
    """Return the figures with more ids, each of which is new to them."""
    if not audit_ids:
        return known
    after = dict(known)
    for id_range, ids in _by_range(audit_ids, shift).items():
        count, checksum = after.get(id_range, (0, 0))
        # Scrambled, and not only multiplied: the sum would be that of the ids, and a pair could stand for another.
        more = sum([spread ^ spread >> 32 for spread in [audit_id * _SPREAD & _UPPER for audit_id in ids]])
        after[id_range] = count + len(ids), checksum + more & _SUM
    return after


def _by_range(audit_ids: Sequence[int], shift: int) -> Mapping[int, Sequence[int]]:
    first = min(audit_ids) >> shift
    if first == max(audit_ids) >> shift:
        return {first: audit_ids}
    found: dict[int, list[int]] = {}
    for audit_id in audit_ids:
        found.setdefault(audit_id >> shift, []).append(audit_id)
    return found


def added(parts: Iterable[Identities]) -> Identities:
    """Return the figures of several parts, which have no id in common, as one."""
    total: dict[int, Figure] = {}
    for part in parts:
        for id_range, (count, checksum) in part.items():
            before, so_far = total.get(id_range, (0, 0))
            total[id_range] = before + count, so_far + checksum & _SUM
    return total


def without(known: Identities, audit_ids: Sequence[int], shift: int) -> Identities:
    """Return the figures without these ids, each of which is in them."""
    less = with_ids({}, audit_ids, shift)
    after = dict(known)
    for id_range, (count, checksum) in less.items():
        before, so_far = after.get(id_range, (0, 0))
        after[id_range] = before - count, so_far - checksum & _SUM
    return after


def unlike(ours: Identities, theirs: Identities) -> list[int]:
    """Return the ranges whose ids are not the same on both sides, in rising order."""
    ranges = ours.keys() | theirs.keys()
    return sorted(at for at in ranges if ours.get(at, (0, 0)) != theirs.get(at, (0, 0)))
