"""The control plane: HTTP for services, browsers and Prometheus, and the operators' console."""
