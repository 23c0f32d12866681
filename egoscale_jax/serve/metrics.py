"""What Prometheus reads at /metrics; a registry of its own, so that two servers in one process do not share their counts."""

import prometheus_client as prometheus

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
STAGES = ("prepare", "queue", "device", "total")
REASONS = ("observation", "message", "rate", "busy", "draining", "token", "origin", "connections")


class Metrics:
  def __init__(self):
    self.registry = prometheus.CollectorRegistry()
    prometheus.ProcessCollector(registry=self.registry)
    counter, histogram = prometheus.Counter, prometheus.Histogram
    more = {"registry": self.registry}
    self.answered = counter("egoscale_answered", "Chunks sent.", ["protocol"], **more)
    self.refused = counter("egoscale_refused", "Requests and connections that were told why not.", ["reason"], **more)
    self.failed = counter("egoscale_failed", "Requests that met a bug of the server's.", **more)
    self.seconds = histogram("egoscale_seconds", "Time of a request, by stage.", ["stage"], buckets=_SECONDS, **more)
    self.rows = histogram("egoscale_batch_rows", "Requests that shared a call of the model.", buckets=(1, 2, 4, 8, 16, 32, 64), **more)
    self.compiled = prometheus.Gauge("egoscale_compiled_rows", "The largest batch whose program is there.", **more)
    self.in_flight = prometheus.Gauge("egoscale_in_flight", "Requests that are accepted and not answered.", **more)
    self.connections = prometheus.Gauge("egoscale_connections", "Open websockets.", **more)
    for reason in REASONS:  # so that they are there before the first
      self.refused.labels(reason)
    self._stages = {stage: self.seconds.labels(stage) for stage in STAGES}

  def observe(self, timing, rows):
    """timing: {"<stage>_ms": milliseconds}; rows: that shared the call."""
    self.rows.observe(rows)
    for stage, histogram in self._stages.items():
      histogram.observe(timing[f"{stage}_ms"] / 1e3)

  def text(self) -> str:
    return prometheus.generate_latest(self.registry).decode()
