"""What MongoDB says of how it does a command."""

from typing import Any


def stages(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the stages of a plan from the outermost in."""
    found = [plan]
    for inner in [plan[name] for name in ("inputStage",) if name in plan] + plan.get("inputStages", []):
        found += stages(inner)
    return found
