"""The control plane's own metrics, at `/metrics`. Labels are bounded: route templates, never paths."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
NO_ROUTE = "(none)"
METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0)  # a roll back takes minutes


class HttpMetrics:
    """The counters of one application; a registry of its own, so that two in a process do not meet."""

    def __init__(self) -> None:
        """`registry` is public, for further collectors."""
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "crm_control_requests",
            "Requests answered, by route template and status",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "crm_control_request_seconds",
            "Time to answer, live event streams left out",
            ("method", "route"),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.in_progress = Gauge("crm_control_requests_in_progress", "Requests being answered", registry=self.registry)
        self.auth_failures = Counter(
            "crm_control_auth_failures",
            "Requests refused without a valid login",
            ("world",),
            registry=self.registry,
        )
        self.event_clients = Gauge("crm_control_event_clients", "Connected live event streams", registry=self.registry)
        self.jobs = Gauge(
            "crm_control_jobs", "Jobs by status; partial replays left out", ("status",), registry=self.registry
        )
        self.jobs_known = Gauge(
            "crm_control_jobs_known", "1 if crm_control_jobs could be read just now", registry=self.registry
        )

    def answered(self, method: str, route: str, status: int, seconds: float, *, stream: bool) -> None:
        """Count a request."""
        method = method if method in METHODS else "OTHER"
        self.requests.labels(method, route, str(status)).inc()
        if not stream:
            self.seconds.labels(method, route).observe(seconds)

    def text(self) -> bytes:
        """Return all of it as Prometheus reads it."""
        return generate_latest(self.registry)
