"""Spans of what a node does, for OpenTelemetry (``pip install "onefold[otel]"``).

Without the extra, or without an exporter named in the environment (``OTEL_EXPORTER_OTLP_ENDPOINT`` or
``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT``), nothing is imported and nothing is recorded. A program that has set up a tracer provider
of its own gets the spans there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


class Tracing(Protocol):
    """What records spans."""

    def span(self, name: str, **attributes: Any) -> Any:
        """A context manager around a piece of work; what it raises is recorded and propagates."""
        ...

    def close(self) -> None:
        """Send what is left."""
        ...


class NoTracing:
    """Records nothing."""

    @contextmanager
    def span(self, name: str, **attributes: Any) -> Iterator[None]:  # noqa: ARG002
        yield

    def close(self) -> None:
        """Nothing is left."""


class Labelled:
    """Spans of another tracing, each with these attributes too. Its owner closes that one."""

    def __init__(self, tracing: Tracing, **attributes: Any) -> None:
        self._tracing = tracing
        self._attributes = attributes

    def span(self, name: str, **attributes: Any) -> Any:
        return self._tracing.span(name, **self._attributes, **attributes)

    def close(self) -> None:
        """Nothing is left here."""


class OtelTracing:
    """Records spans with a tracer of OpenTelemetry."""

    def __init__(self, tracer: Any, provider: Any | None = None) -> None:
        """``provider``: shut down by ``close``; None: it belongs to somebody else."""
        self._tracer = tracer
        self._provider = provider

    @contextmanager
    def span(self, name: str, **attributes: Any) -> Iterator[None]:
        with self._tracer.start_as_current_span(
            f"onefold.{name}", attributes={f"onefold.{key}": value for key, value in attributes.items()}
        ):
            yield

    def close(self) -> None:
        if self._provider is not None:
            self._provider.shutdown()


def start_tracing(node: str, space: str, region: str) -> Tracing:
    """Tracing as the environment wants it; ``NoTracing`` without the extra or an endpoint."""
    if not any(os.environ.get(name) for name in _ENDPOINTS):
        return NoTracing()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        return NoTracing()
    from onefold._version import __version__

    resource = Resource.create(
        {
            "service.name": "onefold",
            "service.instance.id": node,
            "onefold.space": space,
            "onefold.region": region,
        }
    )
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return OtelTracing(provider.get_tracer("onefold.node", __version__), provider)
