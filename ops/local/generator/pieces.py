"""Pieces of `audited_changes` that rows are put together from: one or a few columns each, already written by `psych`.

Writing YAML through libyaml takes 50 µs and more a document, so it happens a few thousand times at the start and never
again: a row joins pieces. They are escaped for COPY's text format. What a piece looks like depends on when its row was
written (`Era`), because the gem, Psych and libyaml changed over the years.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from random import Random
from typing import Any

from ops.local.generator import psych
from ops.local.generator.psych import Indifferent, Instant, Plain, Symbol
from ops.local.sample.rows import json_lines

POOL = 64  # pieces of a column; a power of two, so that six random bits choose one
NAMES = 512  # names of people; the same for companies, deals, tasks and tickets
REDACTED = "[REDACTED]"
FILTERED = "[FILTERED]"


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split("|")]


FIRST_NAMES = _words(
    "Adi|Agus|Ahmad|Ananda|Andi|Anisa|Arief|Ayu|Bagus|Bambang|Bayu|Budi|Cahya|Citra|Dewi|Dian|Dimas|Eka|Endah|Fajar"
    "|Farah|Fitri|Galih|Gita|Hadi|Hana|Hendra|Ika|Indah|Intan|Iqbal|Irfan|Jaya|Joko|Kartika|Kemal|Laras|Lestari|Lina"
    "|Made|Maya|Mega|Nadia|Nanda|Nia|Nur|Oka|Putra|Putri|Rahma|Raka|Rani|Ratna|Reza|Rina|Rizky|Sari|Satria|Sinta|Siti"
    "|Surya|Tari|Teguh|Tri|Utami|Vina|Wahyu|Wati|Wayan|Wulan|Yanti|Yoga|Yudi|Zahra|Zulfikar|Zoë|José|Nguyễn Thị|Søren"
    "|Raden Ajeng|Siti Nur|I Gusti|D'Arcy|美咲|Олег"
)
LAST_NAMES = _words(
    "Anggraini|Aritonang|Basuki|Firmansyah|Ginting|Gunawan|Halim|Hartono|Hidayat|Hutapea|Irawan|Kartini|Kurniawan"
    "|Kusuma|Kusumawardhani|Lubis|Maharani|Mahendra|Manurung|Nasution|Nugroho|Nurhaliza|Pangestu|Permata|Prasetyo"
    "|Pratama|Purnama|Rahayu|Ramadhan|Saputra|Santoso|Setiawan|Siregar|Situmorang|Suharto|Sulistyo|Susanti|Suryadi"
    "|Syahputra|Tanjung|Utomo|Wibowo|Widodo|Wijaya|Wirawan|Wulandari|Yulianti|O'Neill|Müller|van der Berg|Łukasik"
    "|S. Kom., M.M.|(alm.)|田中|d'Souza"
)
STREETS = _words("Sudirman|Thamrin|Gatot Subroto|Diponegoro|Malioboro|Asia Afrika|Pemuda|Ahmad Yani|Hayam Wuruk")
CITIES = _words("Jakarta|Bandung|Surabaya|Medan|Makassar|Denpasar|Yogyakarta|Semarang|Malang|Palembang|Balikpapan")
TRADES = _words("Maju Jaya|Sumber Rejeki|Cahaya Abadi|Karya Mandiri|Bumi Perkasa|Mitra Utama|Tirta Segar|Graha Indah")
PRODUCTS = _words("Paket Dasar|Paket Pro|WhatsApp API|Call centre|Chatbot|CRM tahunan|Integrasi ERP|Pelatihan")
JOBS = _words(
    "Direktur|Kepala Operasional|Manajer: Pemasaran|Staf IT|Owner|Finance & Tax|CTO/co-founder|HR - rekrutmen"
)
TOPICS = _words("harga|pemasangan|tagihan ganda|login gagal|kontrak|pengiriman|retur barang|jadwal demo|akses API")
SENTENCES = (
    "Pelanggan minta penawaran ulang sebelum Jumat.",
    "Sudah dihubungi lewat WhatsApp, belum dibalas.",
    "Anggaran disetujui untuk kuartal depan; keputusan di kepala operasional.",
    "Called twice, left a message: wants a demo for the finance team.",
    'Katanya "tidak mendesak", tunggu sampai akhir bulan.',
    "Perlu NPWP & SIUP sebelum kontrak #2 ditandatangani.",
    "Kirim ulang brosur ke alamat baru.",
    "Meeting moved; they'd rather do it online.",
)
EMOJI = "Selamat pagi \U0001f600 semua, terima kasih \U0001f64f"
JSON_TEXT = '{"utm_source": "ig", "score": 3, "tags": ["a", "b"]}'


@dataclass(frozen=True, slots=True)
class Era:
    """The years in which one version of the gem wrote the rows."""

    gem: str
    nil: str  # how its libyaml writes nil
    root: str  # first line of an update
    enum_names: bool  # enums as names, else as the database's values
    redacts_creates: bool
    redacts_every_update: bool  # every redacted column is in every update of a person, changed or not
    psych: str  # the writer that the sample rows of this era name


ERAS = (
    Era("4.8", psych.NIL_022, f"--- {psych.HASH_WITH_INDIFFERENT_ACCESS}\n", True, False, False, "audited 4.8"),
    Era("5.0", psych.NIL_022, "---\n", False, False, True, "audited 5.0"),
    Era("5.8", psych.NIL_025, "---\n", False, True, False, "audited 5.8"),
)


def copy_text(text: str) -> str:
    """Return a text as a field of COPY's text format."""
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")


def bare(value: Mapping[str, object]) -> str:
    """Return the entries of a hash as a template, without the document's first line."""
    return psych.template(value).removeprefix("---\n")


def _indifferent(value: object) -> object:
    if isinstance(value, dict):
        return Indifferent({key: _indifferent(item) for key, item in value.items()})
    return [_indifferent(item) for item in value] if isinstance(value, list) else value


def _plain_hashes(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain_hashes(item) for key, item in value.items()}
    return [_plain_hashes(item) for item in value] if isinstance(value, list) else value


@dataclass(frozen=True, slots=True)
class Moment:
    """A piece with one time in it: what stands before the UTC clock, between it and the wall clock, and after."""

    before: str
    between: str
    after: str

    def at(self, utc: str, wall: str) -> str:
        """Return the piece; the times are `YYYY-MM-DD HH:MM:SS.ffffff`."""
        return f"{self.before}{utc}{self.between}{wall}{self.after}"


def moment(zone: str, build: Callable[[Instant], Mapping[str, object]], era: Era) -> Moment:
    """Return the piece that `build` makes of an instant in `zone`."""
    utc, wall = "2001-02-03 04:05:06.000000", "2002-03-04 05:06:07.000000"
    text = copy_text(psych.with_nil(bare(build(Instant(utc + "000", wall + "000", zone))), era.nil))
    before, rest = text.split(utc)
    between, after = rest.split(wall)
    return Moment(before, between, after)


class Texts:
    """Random values of all kinds; everything comes out of one `Random`, in the order of the calls."""

    def __init__(self, random: Random) -> None:
        """`random` alone decides: the same seed gives the same texts on every machine."""
        self._random = random

    def below(self, top: int) -> int:
        """Return a number from 0 to `top` - 1."""
        return int(self._random.random() * top)

    def one(self, choices: Sequence[Any]) -> Any:
        """Return one of the choices."""
        return choices[self.below(len(choices))]

    def chance(self, share: float) -> bool:
        """Return True in this share of the calls."""
        return self._random.random() < share

    def maybe(self, value: object, share: float = 0.7) -> object:
        """Return the value or, else, nil."""
        return value if self.chance(share) else None

    def telephone(self) -> str:
        """Return a number as people type it: international (quoted), local, grouped."""
        number = f"{8110000000 + self.below(999_999_999)}"
        form = self.below(4)
        if form == 0:
            return f"+62{number}"
        if form == 1:
            return f"0{number}"
        if form == 2:
            return f"0{number[:3]}-{number[3:7]}-{number[7:]}"
        return f"62{number}"

    def address(self) -> str:
        """Return an address of one line or several, at times with something to quote."""
        street, city, number = self.one(STREETS), self.one(CITIES), 1 + self.below(240)
        form = self.below(8)
        if form == 0:
            return f"Jl. {street} No. {number}\nRT 0{1 + self.below(9)}/RW 0{1 + self.below(9)}\n{city}"
        if form == 1:
            return f"#{number} {street} Residence, {city}"
        if form == 2:
            return f"Jl. {street} {number}: lantai 3, {city} 1{self.below(9999):04}"
        return f"Jl. {street} No. {number}, {city}"

    def sentence(self) -> str:
        """Return a short note."""
        return str(self.one(SENTENCES))

    def body(self) -> str:
        """Return a note of one line, of several, with emoji, long enough to be folded, or one that looks like JSON."""
        form = self.below(12)
        if form < 5:
            return self.sentence()
        if form < 7:
            return f"Hasil rapat {self.one(TOPICS)}:\n- {self.sentence()}\n- {self.sentence()}\n"
        if form == 7:
            return f"{EMOJI} ({self.one(TOPICS)})"
        if form == 8:
            return JSON_TEXT
        if form == 9:
            return f"{self.sentence()}\n\n{self.sentence()}"
        return f"{self.sentence()} {self.sentence()} {self.sentence()}"

    def date(self) -> Plain:
        """Return a day of this century's first quarter."""
        return Plain(f"{2016 + self.below(10)}-{1 + self.below(12):02}-{1 + self.below(28):02}")

    def birth_date(self) -> Plain:
        """Return a day of the last century's second half."""
        return Plain(f"{1950 + self.below(50)}-{1 + self.below(12):02}-{1 + self.below(28):02}")

    def instant(self) -> Instant:
        """Return a full minute in Jakarta, seven hours ahead of UTC."""
        day, hour, minute = self.date(), self.below(17), 15 * self.below(4)
        return Instant(f"{day} {hour:02}:{minute:02}:00.000000000", f"{day} {hour + 7:02}:{minute:02}:00.000000000")

    def plain_time(self) -> Plain:
        """Return an instant as Rails writes it where time zone conversion is off: a timestamp in UTC."""
        return Plain(f"{self.date()} {self.below(24):02}:{15 * self.below(4):02}:00.000000000 Z")

    def money(self) -> Decimal:
        """Return an amount with up to two decimals."""
        return Decimal(1 + self.below(900)) * 250_000 if self.chance(0.7) else Decimal(self.below(10**9)) / 100

    def labels(self) -> object:
        """Return an array of text, at times with nil, an empty string or something to quote; or none at all."""
        form = self.below(6)
        if form == 0:
            return None
        if form == 1:
            return []
        if form == 2:
            return ["needs: quoting", "#vip", None, ""]
        return [self.one(("hot", "cold", "vip", "referral", "wa", "reseller")) for _ in range(1 + self.below(3))]

    def additional_fields(self) -> object:
        """Return a jsonb value: a hash as Rails reads it, an array, or none."""
        if self.chance(0.2):
            return None
        return {
            "npwp": f"01.{self.below(999):03}.{self.below(999):03}.{self.below(9)}-{self.below(999):03}.000",
            "kota": self.one(CITIES),
            "anak": self.below(5),
            "cicilan": [self.below(12), self.below(100) / 10, None],
            "aktif": self.chance(0.5),
        }

    def preferences(self) -> object:
        """Return a serialised Hash, with symbols as values."""
        if self.chance(0.4):
            return {}
        return {"theme": self.one((Symbol("dark"), Symbol("light"))), "bahasa": self.one(("id", "en")), 1: "satu"}

    def settings(self) -> object:
        """Return a store: a hash with indifferent access."""
        return Indifferent(
            {} if self.chance(0.5) else {"theme": self.one(("gelap", "terang: 2")), "locale": Symbol("id")}
        )


GENDERS = (("female", "F"), ("male", "M"), ("undisclosed", "X"))
LIFECYCLES = ("subscriber", "lead", "opportunity", "customer", "evangelist")
PRIORITIES = ("low", "medium", "high", "urgent")
DEAL_STATES = ("open", "won", "lost", "stalled")
SOURCES = ("web", "referral", "partner", "walk_in")


class Pieces:
    """All pieces for one era. A name has the same place in every era's lists, so a record keeps it over the years."""

    def __init__(self, era: Era, seed: int) -> None:
        """Write them; takes about a third of a second."""
        self.era = era
        self._texts = Texts(Random(f"pieces {seed}"))  # noqa: S311  # reproducible on purpose
        self.root = copy_text(era.root)
        self._names()
        self._updates()
        self._creates()
        self._zones()
        self.samples = {kind: self._sample_updates(kind) for kind in ("Crm::Person", "Crm::Deal", "Crm::Task")}

    def texts(self, random: Random) -> Texts:
        """Return a source of values that goes its own way."""
        return Texts(random)

    def write(self, value: Mapping[str, object]) -> str:
        """Return the entries of a hash, ready for COPY."""
        return copy_text(psych.with_nil(bare(value), self.era.nil))

    def item(self, column: str, value: object) -> str:
        """Return `- value` as it stands in an update of `column`."""
        return self.write({column: [value]}).removeprefix(f"{column}:\\n")

    def pool(self, column: str, value: Callable[[], object]) -> list[str]:
        """Return pieces of updates of `column`: pairs of two values that are not the same.

        A root with indifferent access turns every hash below it into one; later gems make them all plain.
        """
        convert = _indifferent if psych.HASH_WITH_INDIFFERENT_ACCESS in self.era.root else _plain_hashes
        pieces = []
        for _ in range(POOL):
            old, new = value(), value()
            while new == old:
                new = value()
            pieces.append(self.write({column: convert([old, new])}))
        return pieces

    def enum(self, names: Sequence[str], values: Sequence[object]) -> Sequence[object]:
        """Return what an enum column holds in this era."""
        return names if self.era.enum_names else values

    def _names(self) -> None:
        t = self._texts
        self.first_names = [t.one(FIRST_NAMES) for _ in range(NAMES)]
        self.last_names = [t.one(LAST_NAMES) for _ in range(NAMES)]
        self.emails = [
            f"{''.join(c for c in first.lower() if c.isascii() and c.isalpha()) or 'kontak'}.{i}@{host}"
            for i, (first, host) in enumerate(
                (f, t.one(("pelanggan.example", "contoh.co.id", "mail.example"))) for f in self.first_names
            )
        ]
        self.company_names = [
            f"{t.one(('PT', 'CV', 'UD', 'PT.'))} {t.one(TRADES)}{t.one(('', '', ' Tbk', ': cabang ' + t.one(CITIES)))}"
            for _ in range(NAMES)
        ]
        self.deal_names = [
            t.one(("{p} - {n}", "Renewal 2024: {p}", "#{i} {p}", "{n} ({p})")).format(
                p=t.one(PRODUCTS), n=t.one(LAST_NAMES), i=i
            )
            for i in range(NAMES)
        ]
        self.task_names = [
            f"{t.one(('Telepon', 'Call back:', 'Kirim', 'Visit'))} {t.one(TOPICS)} {i}" for i in range(NAMES)
        ]
        self.ticket_names = [
            f"{t.one(('Keluhan', 'Error: ', '[WA]', 'Tanya'))} {t.one(TOPICS)} {i}" for i in range(NAMES)
        ]
        self.last_name_items = [self.item("last_name", name) for name in self.last_names]
        self.deal_name_items = [self.item("name", name) for name in self.deal_names]
        self.person_names = [
            self.write(
                {"first_name": first, "last_name": last, "email": email, "telephone": t.maybe(t.telephone(), 0.9)}
            )
            for first, last, email in zip(self.first_names, self.last_names, self.emails, strict=True)
        ]
        self.company_heads = [self.write({"name": name}) for name in self.company_names]
        self.deal_heads = [self.write({"name": name}) for name in self.deal_names]
        self.task_heads = [
            self.write({"title": name, "description": t.maybe(t.body(), 0.3)}) for name in self.task_names
        ]
        self.ticket_heads = [
            self.write({"name": name, "description": t.maybe(t.body(), 0.6)}) for name in self.ticket_names
        ]

    def _updates(self) -> None:
        t = self._texts
        genders = self.enum([name for name, _ in GENDERS], [value for _, value in GENDERS])
        lifecycles = self.enum(LIFECYCLES, range(len(LIFECYCLES)))
        priorities = self.enum(PRIORITIES, range(len(PRIORITIES)))
        # Columns in the order of the table, with their weights: how often an update changes them.
        self.person_columns = [
            (self.pool("owner_id", lambda: t.maybe(11 + t.below(80), 0.9)), 8),
            (self.pool("email", lambda: t.one(self.emails)), 10),
            (self.pool("telephone", t.telephone), 12),
            (self.pool("job_title", lambda: t.maybe(t.one(JOBS))), 6),
            (self.pool("address", lambda: t.maybe(t.address(), 0.8)), 8),
            (self.pool("birth_date", lambda: t.maybe(t.birth_date())), 3),
            (self.pool("gender", lambda: t.one(genders)), 2),
            (self.pool("lifecycle_stage", lambda: t.one(lifecycles)), 14),
            (self.pool("is_vip", lambda: t.maybe(t.chance(0.5), 0.8)), 4),
            (self.pool("lead_score", lambda: t.below(100)), 16),
            (self.pool("lifetime_value", t.money), 7),
            (self.pool("conversion_rate", lambda: t.maybe(round(0.01 + t.below(98) / 100, 2))), 3),
            (self.pool("labels", t.labels), 5),
            (self.pool("additional_fields", t.additional_fields), 4),
            (self.pool("preferences", t.preferences), 1),
            (self.pool("settings", t.settings), 1),
            (self.pool("last_contacted_at", lambda: t.maybe(t.instant(), 0.85)), 14),
        ]
        self.deal_columns = [
            (self.pool("owner_id", lambda: t.maybe(11 + t.below(80), 0.9)), 10),
            (self.pool("amount", t.money), 16),
            (self.pool("amount_idr", lambda: 250_000 * t.below(4000)), 12),
            (self.pool("probability", lambda: t.below(20) / 20), 14),
            (self.pool("expected_close_on", lambda: t.maybe(t.date(), 0.9)), 14),
            (self.pool("product_ids", lambda: [11 + t.below(30) for _ in range(1 + t.below(3))]), 5),
            (self.pool("additional_fields", lambda: {"termin": t.below(12), "po": t.maybe(f"PO-{t.below(9999)}")}), 5),
            (self.pool("source", lambda: Symbol(t.one(SOURCES))), 4),
        ]
        self.task_columns = [
            (self.pool("description", lambda: t.maybe(t.body(), 0.8)), 10),
            (self.pool("due_at", lambda: t.maybe(t.instant(), 0.95)), 24),
            (self.pool("crm_task_category_id", lambda: 1 + t.below(12)), 8),
            (self.pool("assignee_id", lambda: t.maybe(11 + t.below(80), 0.95)), 14),
            (self.pool("all_day", lambda: t.maybe(t.chance(0.5), 0.9)), 4),
            (self.pool("checklist", lambda: [t.one(TOPICS), *(["kirim: email"] * t.below(2)), t.below(9)]), 3),
        ]
        self.ticket_columns = [
            (self.pool("description", lambda: t.maybe(t.body(), 0.8)), 8),
            (self.pool("priority", lambda: t.one(priorities)), 14),
            (self.pool("channel", lambda: t.maybe(t.one(("wa", "email", "ig", "telepon", "web_chat")), 0.9)), 6),
            (self.pool("sla_hours", lambda: Decimal(t.below(400)) / 4), 4),
            (self.pool("metadata", lambda: {"wa_id": f"62{t.below(10**9)}", "tags": [t.one(TOPICS)]}), 4),
        ]
        self.company_columns = [
            (self.pool("website", lambda: t.maybe(f"https://{t.one(LAST_NAMES[:40]).lower()}.example", 0.8)), 4),
            (self.pool("employees", lambda: t.maybe(t.below(5000), 0.95)), 10),
            (self.pool("annual_revenue", lambda: t.maybe(Decimal(t.below(10**12)) / 10_000)), 6),
            (self.pool("address", lambda: t.maybe(t.address(), 0.8)), 6),
            (self.pool("tags", t.labels), 4),
            (self.pool("is_customer", lambda: t.maybe(t.chance(0.5), 0.8)), 3),
        ]
        self.note_columns = [(self.pool("body", t.body), 10), (self.pool("pinned", lambda: t.maybe(t.chance(0.5))), 2)]
        self.product_columns = [(self.pool("price", t.money), 1)]
        self.user_columns = [
            (self.pool("role", lambda: t.one(self.enum(("member", "admin", "owner"), (0, 1, 2)))), 1),
            (self.pool("time_zone", lambda: t.one(("Asia/Jakarta", "Asia/Makassar", "Etc/UTC", "Asia/Jayapura"))), 1),
        ]
        self.lost_reasons = [
            self.write({"lost_reason": [None, f"{t.one(TOPICS)}: {t.one(JOBS)}"]}) for _ in range(POOL)
        ]
        open_, won, lost, _ = self.enum(DEAL_STATES, range(len(DEAL_STATES)))
        self.priority_raised = "".join(self.item("priority", priority) for priority in priorities[:2])
        self.deal_won = self.write({"status": [open_, won]})
        self.deal_lost = self.write({"status": [open_, lost]})
        # 4.10 to 5.0 added every redacted column to every update, as a bare value.
        self.person_redacted = (
            self.write({"national_id": REDACTED, "portal_token": REDACTED}) if self.era.redacts_every_update else ""
        )
        if self.era.redacts_creates:
            self.person_secrets = [self.write({"national_id": [REDACTED] * 2, "ssn": [FILTERED] * 2})] * POOL
        elif self.era.redacts_every_update:
            self.person_secrets = []
        else:
            self.person_secrets = self.pool("national_id", lambda: f"3174-{t.below(9999):04}")

    def _creates(self) -> None:
        t = self._texts
        genders = self.enum([name for name, _ in GENDERS], [value for _, value in GENDERS])
        lifecycles = self.enum(LIFECYCLES, range(len(LIFECYCLES)))
        priorities = self.enum(PRIORITIES, range(len(PRIORITIES)))
        hidden = self.era.redacts_creates
        self.person_tails = [
            self.write(
                {
                    "job_title": t.maybe(t.one(JOBS), 0.4),
                    "address": t.maybe(t.address(), 0.4),
                    "birth_date": t.maybe(t.birth_date(), 0.3),
                    "gender": t.maybe(t.one(genders), 0.6),
                    "lifecycle_stage": t.one(lifecycles),
                    "is_vip": t.chance(0.1),
                    "do_not_call": t.chance(0.05),
                    "lead_score": t.maybe(t.below(100), 0.5),
                    "lifetime_value": t.one((Decimal(0), t.money())),
                    "conversion_rate": None,
                    "external_ref": t.maybe(9_007_199_254_740_000 + t.below(2000), 0.1),
                    "ledger_no": None,
                    "labels": t.labels() if t.chance(0.3) else None,
                    "favourite_numbers": None,
                    "additional_fields": t.additional_fields() if t.chance(0.3) else None,
                    "preferences": t.preferences(),
                    "settings": t.settings(),
                    "extra": None,
                    "last_contacted_at": t.maybe(t.instant(), 0.2),
                    "next_call_at": None,
                    "call_window": None,
                    "national_id": REDACTED if hidden else f"3174-{t.below(9999):04}",
                    "portal_token": REDACTED if hidden else f"tok-{t.below(9999)}",
                    "ssn": FILTERED if hidden else f"123-45-{t.below(9999):04}",
                    "avatar": None,
                    "slug": None,
                    "last_ip": None,
                }
            )
            for _ in range(POOL)
        ]
        self.company_tails = [
            self.write(
                {
                    "website": t.maybe(f"https://{t.one(LAST_NAMES[:40]).lower()}.example", 0.6),
                    "employees": t.maybe(t.below(900)),
                    "annual_revenue": t.maybe(Decimal(t.below(10**12)) / 10_000),
                    "valuation": t.maybe(t.money(), 0.3),
                    "founded_on": t.maybe(t.birth_date(), 0.5),
                    "parent_id": None,
                    "address": t.maybe(t.address(), 0.5),
                    "tags": t.labels(),
                    "location": None,
                    "is_customer": t.chance(0.3),
                }
            )
            for _ in range(POOL)
        ]
        self.deal_tails = []
        for _ in range(POOL):
            amount = 250_000 * (1 + t.below(4000))
            self.deal_tails.append(
                self.write(
                    {
                        "amount": Decimal(amount),
                        "amount_idr": amount,
                        "currency": "IDR",
                        "probability": t.below(20) / 20,
                        "discount_range": None,
                        "expected_close_on": t.maybe(t.date(), 0.8),
                        "closed_at": None,
                        "status": self.enum(DEAL_STATES, range(len(DEAL_STATES)))[0],
                        "lost_reason": None,
                        "product_ids": t.maybe([11 + t.below(30) for _ in range(1 + t.below(3))]),
                        "additional_fields": t.maybe({"termin": t.below(12), "po": None}, 0.5),
                        "source": Symbol(t.one(SOURCES)),
                    }
                )
            )
        self.task_middles = [
            self.write(
                {
                    "due_at": t.maybe(t.instant(), 0.95),
                    "reminder_before": None,
                    "start_time": t.maybe(
                        Instant("2000-01-01 02:30:00.000000000", "2000-01-01 09:30:00.000000000"), 0.2
                    ),
                    "crm_task_status_id": 1,
                    "crm_task_category_id": 1 + t.below(12),
                }
            )
            for _ in range(POOL)
        ]
        self.task_tails = [
            self.write(
                {
                    "assignee_id": 11 + t.below(80),
                    "all_day": t.chance(0.1),
                    "completed_at": None,
                    "checklist": t.one(([], ["telepon", "kirim: email"], [t.one(TOPICS)])),
                }
            )
            for _ in range(POOL)
        ]
        self.ticket_middles = [
            self.write(
                {
                    "crm_ticket_status_id": 1,
                    "priority": t.one(priorities),
                    "channel": t.maybe(t.one(("wa", "email", "ig", "telepon")), 0.9),
                }
            )
            for _ in range(POOL)
        ]
        self.ticket_tails = [
            self.write(
                {
                    "first_response_at": None,
                    "resolved_at": None,
                    "sla_hours": t.maybe(Decimal(t.below(400)) / 4),
                    "metadata": t.maybe({"wa_id": f"62{t.below(10**9)}", "tags": ["a: b"]}, 0.5),
                }
            )
            for _ in range(POOL)
        ]
        self.note_bodies = [self.write({"body": t.body()}) for _ in range(POOL)]
        self.note_pins = [self.write({"pinned": t.maybe(t.chance(0.1), 0.9)}) for _ in range(POOL)]
        self.roles = [
            self.write(
                {
                    "role": t.maybe(t.one(("pemilik", "pengguna", "pembuat keputusan"))),
                    "is_primary": t.maybe(t.chance(0.3)),
                }
            )
            for _ in range(POOL)
        ]
        self.product_creates = [
            self.write({"name": f"{t.one(PRODUCTS)}: {t.below(99)}", "price": t.money()}) for _ in range(POOL)
        ]
        self.nothing_changed = copy_text("--- {}\n")
        self.nil = {
            column: self.write({column: None})
            for column in ("crm_company_id", "crm_person_id", "crm_deal_id", "owner_id", "notable_type", "notable_id")
        }
        self.nil_item = self.item("crm_person_id", None)

    def _zones(self) -> None:
        era = self.era
        zones = ("Asia/Jakarta", "Asia/Makassar", "Etc/UTC")
        self.closed_at = {z: moment(z, lambda at: {"closed_at": [None, at]}, era) for z in zones}
        self.completed_at = {z: moment(z, lambda at: {"completed_at": [None, at]}, era) for z in zones}
        self.reopened_at = {z: moment(z, lambda at: {"completed_at": [at, None]}, era) for z in zones}
        self.resolved_at = {z: moment(z, lambda at: {"resolved_at": [None, at]}, era) for z in zones}
        self.first_response_at = {z: moment(z, lambda at: {"first_response_at": [None, at]}, era) for z in zones}
        self.last_sign_in_at = {z: moment(z, lambda at: {"last_sign_in_at": [None, at]}, era) for z in zones}

    def _sample_updates(self, auditable_type: str) -> list[str]:
        """Return whole documents that the real gem wrote in this era: the rare forms, refused Ruby classes among them.

        Without those that name a person or move a status, which must fit the record they stand for, and the longest.
        """
        return [copy_text(text) for text in sample_updates(auditable_type, self.era)]


@lru_cache(maxsize=len(ERAS))
def pieces_of(era: Era, seed: int) -> Pieces:
    """Return the era's pieces; a second history with the same seed does not write them again."""
    return Pieces(era, seed)


SAMPLE_BYTES_MAX = 4_000
STATUS_COLUMNS = ("crm_person_id", "crm_stage_id", "crm_task_status_id", "crm_ticket_status_id", "crm_company_id")


def sample_updates(auditable_type: str, era: Era) -> list[str]:
    """Return the sample's YAML updates of a type that the era's gem wrote."""
    ours = {
        row["id"]
        for row in json_lines("expected_changes")
        if row["table"] == "audits_yaml" and row["written_by"].startswith(era.psych)
    }
    texts: Iterable[str] = (
        row["audited_changes"]
        for row in json_lines("audits_yaml")
        if row["id"] in ours
        and row["auditable_type"] == auditable_type
        and row["action"] == "update"
        and row["audited_changes"] != "--- {}\n"
    )
    return [
        text
        for text in texts
        if len(text) <= SAMPLE_BYTES_MAX and not any(f"\n{column}:" in text for column in STATUS_COLUMNS)
    ]
