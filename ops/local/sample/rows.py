"""The sample's JSON Lines files, read from the package. Pure."""

import json
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

SAMPLE_YAML = "sample-yaml"  # account of the rows whose changes are YAML text, public.audits
SAMPLE_JSONB = "sample-jsonb"  # account of the rows whose changes are jsonb, jsonb_variant.audits


def json_lines(name: str) -> Iterator[dict[str, Any]]:
    r"""Yield the objects of `<name>.jsonl`. Lines end at `\n` only: U+2028 stands raw inside strings."""
    for line in files("ops.local.sample").joinpath(f"{name}.jsonl").read_text("utf-8").split("\n"):
        if line:
            yield json.loads(line)
