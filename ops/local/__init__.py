"""The workbench: embedded servers, a sample CRM, a generated one. For development, demo and tests."""
