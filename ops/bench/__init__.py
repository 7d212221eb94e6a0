"""Measurements: `crm-replay bench`, and a load on the control plane. Not needed in production."""
