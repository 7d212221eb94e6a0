"""MongoDB takes every document that `processors.encoding.documents` encodes, whatever the CRM's own keys are."""

from typing import Any

from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument

from processors.encoding import documents

KEYS = [
    "a.b", ".", "..", "$a", "$", "$ref", "$id", "$db", "$ruby", "$float", "$set", "$where", "", " ", "_id", "a\0b",
    "a.", "\0", "\ud83d", "é", "\u2028", "0", "-1", "constructor", "x" * 2_000,
]  # fmt: skip


def test_every_key_is_stored_and_comes_back_byte_for_byte(mongo_database: Any) -> None:
    values: list[Any] = [{key: {key: [{key: 1}]}} for key in KEYS]
    values += [{"$ref": "a", "$id": 1}, {"$ref": "a", "$id": 1, "$db": "b"}, {"$numberLong": "1"}, dict.fromkeys(KEYS)]
    logs = mongo_database.get_collection("logs", CodecOptions(document_class=RawBSONDocument))
    for number, value in enumerate(values):
        encoded = documents.encode({"_id": number, "changes": [{"field": "x", "from": value, "to": value}]})
        logs.insert_one(RawBSONDocument(encoded))
        found = logs.find_one({"_id": number})
        assert found.raw == encoded
