"""The contract: what two processes must agree on. Pure, and imports nothing else of ours."""
