"""Activity logs as the replay and the live feed write them."""

from typing import Any


def document(audit_id: int, account: str = "a", **more: Any) -> dict[str, Any]:
    return {"company_sso_id": account, "external_id": f"crm_audit:{audit_id}", "source_tag": "crm_migration", **more}


def live(audit_id: int, account: str = "a") -> dict[str, Any]:
    return {"company_sso_id": account, "external_id": f"crm_audit:{audit_id}"}
