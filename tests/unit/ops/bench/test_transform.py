"""The transformation's benchmark says what it measured; how fast is no test's business."""

from ops.bench.transform import run, sample_events, typical_updates
from processors.encoding.transform import Transformed, Transformer
from schemas.source import mapping
from tests.support.lookups import Anyone


def test_every_mix_has_a_rate_and_a_share_of_the_slow_path() -> None:
    found = run(0.3)
    assert [name for name in found if name.endswith("_rows_per_s")] == [
        "typical_small_updates_rows_per_s",
        "yaml_fixture_mix_rows_per_s",
        "jsonb_mix_rows_per_s",
    ]
    assert all(found[name] > 0 for name in found if name.endswith("_rows_per_s"))
    assert found["typical_small_updates_slow_path_share"] == 0
    assert 0 < found["yaml_fixture_mix_slow_path_share"] < 0.15


def test_typical_updates_all_become_logs_of_different_rows() -> None:
    events = typical_updates(200)
    transformer = Transformer(mapping.load(None), "A")
    assert all(isinstance(transformer.transform(event, Anyone()), Transformed) for event in events)
    assert len({event.audit_id for event in events}) == 200
    assert len(sample_events("audits_yaml.jsonl", False)) == 326
