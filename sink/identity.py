"""Pure: which rows have a document, as figures that two sides can compare: a count and a checksum per id range.

Counts alone can agree by chance: a missing and a surplus document cancel out. So the sink sums the ids of the rows
whose documents it has written or met, and the end of a run sums those of the documents. A checksum is a sum of
scrambled ids, independent of their order; if both figures of a range are equal, so are its ids.
"""

from collections.abc import Iterable, Mapping, Sequence

RANGES_BITS = 6  # an account's ids are divided into up to 64 ranges
ALL_IN_ONE = 64  # a shift that leaves one range
_SPREAD = 0x9E3779B97F4A7C15  # odd, and near 2**64 / 1.618: a Fibonacci hash
_MASK_64 = 2**64 - 1
_SUM = 2**63 - 1  # MongoDB's largest integer

Figure = tuple[int, int]  # how many ids, and their checksum
Identities = Mapping[int, Figure]  # by range: an id shifted to the right


def shift_of(top_audit_id: int) -> int:
    """Return the right shift of an id to its range; `top_audit_id` is the newest id."""
    return max(0, top_audit_id.bit_length() - RANGES_BITS)


def ids_of(id_range: int, shift: int) -> tuple[int, int]:
    """Return the bounds of a range: the id below its first, and its last."""
    return (id_range << shift) - 1, ((id_range + 1) << shift) - 1


def with_ids(known: Identities, audit_ids: Sequence[int], shift: int) -> Identities:
    """Return the figures with more ids, each of which is new to them."""
    if not audit_ids:
        return known
    after = dict(known)
    for id_range, ids in _by_range(audit_ids, shift).items():
        count, checksum = after.get(id_range, (0, 0))
        # Scrambled, and not only multiplied: else the sum would be linear, and two pairs of ids could have the same.
        more = sum([spread ^ spread >> 32 for spread in [audit_id * _SPREAD & _MASK_64 for audit_id in ids]])
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
    """Return the sum of the figures of several parts, which have no id in common."""
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
    """Return the ranges whose ids differ, in ascending order."""
    ranges = ours.keys() | theirs.keys()
    return sorted(at for at in ranges if ours.get(at, (0, 0)) != theirs.get(at, (0, 0)))
