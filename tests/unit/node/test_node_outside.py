"""What a node shows to the outside: HTTP, log lines, spans."""

from __future__ import annotations

import io
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Gauge, generate_latest

import onefold as of
from onefold import agg
from onefold.compute.live.job.status import standings
from onefold.env import SeededEnv
from onefold.errors import InvalidArgument, SpaceError
from onefold.node.members.membership import Identity
from onefold.node.metrics import NodeMetrics, registry_of
from onefold.node.telemetry.http import HttpSide, parse_listen
from onefold.node.telemetry.logging import JsonLog
from onefold.node.telemetry.tracing import NoTracing, OtelTracing, start_tracing

# -- HTTP


@contextmanager
def side(ready: dict[str, Any], token: str | None = "", listen: str = "0") -> Iterator[HttpSide]:
    registry = CollectorRegistry()
    Gauge("onefold_test", "A test.", registry=registry).set(7)
    made = HttpSide(
        parse_listen(listen), live=lambda: {"ok": True}, ready=lambda: ready, registry=registry, token=token
    )
    try:
        yield made
    finally:
        made.close()


def ask(side: HttpSide, path: str, token: str | None = None, data: bytes | None = None) -> tuple[int, str]:
    headers = {"Authorization": token} if token else {}
    request = urllib.request.Request(f"http://{side.address}{path}", headers=headers, data=data)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_live_ready_and_metrics() -> None:
    ready: dict[str, Any] = {"ok": False, "waiting": ["shard 3"]}
    with side(ready) as http:
        assert http.address.startswith("127.0.0.1:")
        assert ask(http, "/live") == (200, '{"ok": true}\n')
        assert ask(http, "/ready") == (503, '{"ok": false, "waiting": ["shard 3"]}\n')
        ready["ok"] = True
        assert ask(http, "/ready/")[0] == 200
        status, text = ask(http, "/metrics")
        assert status == 200
        assert "onefold_test 7.0" in text
        assert ask(http, "/else")[0] == 404
        assert ask(http, "/live", data=b"x")[0] == 405


def test_metrics_ask_for_the_token_that_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEFOLD_HTTP_TOKEN", "of-secret")
    with side({"ok": True}, token=None) as http:
        assert ask(http, "/metrics")[0] == 401
        assert ask(http, "/metrics", "Bearer wrong")[0] == 401
        assert ask(http, "/metrics", "Basic of-secret")[0] == 401
        assert ask(http, "/metrics", "Bearer of-secret")[0] == 200
        assert ask(http, "/ready")[0] == 200


def test_an_address_that_is_taken_is_told() -> None:
    with (
        side({"ok": True}) as http,
        pytest.raises(SpaceError, match=r"nothing can listen on 127.0.0.1:\d+.*--http"),
    ):
        HttpSide(
            parse_listen(http.address), live=dict, ready=dict, registry=CollectorRegistry(), token=""
        )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("8080", ("127.0.0.1", 8080)), (":8080", ("127.0.0.1", 8080)), ("0.0.0.0:0", ("0.0.0.0", 0)),
        ("[::1]:80", ("::1", 80)), ("h:65535", ("h", 65535)),
    ],
)  # fmt: skip
def test_where_to_listen(text: str, found: tuple[str, int]) -> None:
    assert parse_listen(text) == found


@pytest.mark.parametrize("text", ["", "h", "h:", "h:x", "h:65536", "h:-1"])
def test_nowhere_to_listen(text: str) -> None:
    with pytest.raises(InvalidArgument, match="--http"):
        parse_listen(text)


# -- log lines


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_events_are_json_lines() -> None:
    stream = io.StringIO()
    log = JsonLog("n1", stream=stream, env=SeededEnv(0))
    log.info("joined", epoch=7, shards=(1, 2), error=SpaceError("no such\nplace"), more={"a": None})
    assert lines(stream) == [
        {
            "time": "2023-11-14T22:13:20.000+00:00",
            "level": "info",
            "event": "joined",
            "node": "n1",
            "epoch": 7,
            "shards": [1, 2],
            "error": "SpaceError: no such\nplace",
            "more": {"a": None},
        }
    ]


def test_a_renamed_event_names_its_former_name() -> None:
    stream = io.StringIO()
    log = JsonLog("n1", stream=stream, env=SeededEnv(0))
    log.warning("left_unclean")
    log.begins("shard_12_stalled", "down")
    log.ends("shard_12_stalled")
    log.begins("nodes_diverged", "at 7")
    log.ends("nodes_diverged")
    log.info("joined")
    assert [line.get("was") for line in lines(stream)] == [
        "left_without_a_word", "shard_12_waits", "shard_12_waits_over", "nodes_differ", "nodes_differ_over", None,
    ]  # fmt: skip


# -- metrics


class LoneNode:
    """As much of a node as its metrics read, without shards."""

    identity = Identity("n1", "eu", "")
    beats = 3
    nodes = ()
    workers = SimpleNamespace(busy=2, live_jobs=tuple)
    hosting = SimpleNamespace(phases=lambda: {1: "ready"}, ready=dict)

    @staticmethod
    def ready() -> dict[str, Any]:
        return {"ok": True}

    live = ready


def test_renamed_metrics_are_exported_under_both_names() -> None:
    check: Any = SimpleNamespace(open=["a", "b"])
    lone: Any = LoneNode()
    text = generate_latest(registry_of(NodeMetrics(lone, "main", divergence_check=check))).decode()
    found = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    for name, former, value in (
        ("onefold_divergences", "onefold_nodes_differ", "2.0"),
        ("onefold_node_heartbeats_total", "onefold_node_beats_total", "3.0"),
        ("onefold_tasks_running", "onefold_tasks_busy", "2.0"),
    ):
        assert (found[name], found[former]) == (value, value)
    assert "# HELP onefold_nodes_differ Deprecated: use onefold_divergences." in text
    assert "# TYPE onefold_node_beats_total counter" in text
    assert "# TYPE onefold_shard_behind_offsets gauge" in text


def test_live_jobs_are_reported_as_their_status_says(tmp_path: Path) -> None:
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    lone: Any = LoneNode()
    with of.connect(tmp_path) as db:
        stream = db.stream("clicks")
        stream.append_many([{"at": noon + timedelta(seconds=second)} for second in range(100)])
        rows = db.read_stream("clicks", follow=True, event_time="at", idle=None)
        run = (
            rows.window(of.window.tumbling("1m"))
            .group_by()
            .agg(n=agg.count())
            .into("t")
            .start(on_error="skip")
        )
        run.catch_up("120s")
        ahead = {"at": datetime.now(UTC) + timedelta(days=1)}
        stream.append_many([{"at": noon}, {"page": "no time"}, ahead])
        run.catch_up("120s").stop()
        stream.append_many([{"at": noon}] * 3)
        lone.workers = SimpleNamespace(busy=0, live_jobs=lambda: list(standings(db._live_starter().jobs)))
        text = generate_latest(registry_of(NodeMetrics(lone, "main"))).decode()
        status = run.status()
    found = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("onefold_live_"))
    values = {
        name.removeprefix("onefold_live_").removesuffix('{job="t"}'): float(value)
        for name, value in found.items()
    }
    values = {name: value for name, value in values.items() if not name.endswith("_created")}
    waited = values.pop("lag_seconds")
    assert status.lag_s >= waited > 0
    assert values == {
        "running": 0, "readable": 1, "lag_records": 3, "held": 1, "workers": 0, "state_bytes": status.state_bytes,
        "watermark_seconds": noon.timestamp() + 99, "events_total": 101, "late_total": 1, "dead_total": 1, "ahead_total": 1,
        "commits_total": status.commits,
    }  # fmt: skip


# -- log lines that last


def test_a_lasting_condition_is_logged_once() -> None:
    stream = io.StringIO()
    log = JsonLog("n1", stream=stream, env=SeededEnv(0))
    for reason in ("down", "down", "refused", "refused"):
        log.begins("log_unreachable", reason)
    assert log.lasting == ["log_unreachable"]
    log.ends("log_unreachable")
    log.ends("log_unreachable")
    assert [(line["event"], line.get("reason")) for line in lines(stream)] == [
        ("log_unreachable", "down"),
        ("log_unreachable", "refused"),
        ("log_unreachable_over", None),
    ]


SEED = "SU" + "AB" * 28


@pytest.mark.parametrize(
    "text",
    [
        "nats://app:hunter2@h:4222/s", "no answer from tls://app:hunter2@h", f"the seed {SEED} is wrong",
        "password=hunter2", "{'password': 'hunter2'}", "Authorization: Bearer hunter2", "login pass-phrase-x failed",
    ],
)  # fmt: skip
def test_no_line_has_a_secret(text: str) -> None:
    stream = io.StringIO()
    log = JsonLog("n1", stream=stream, env=SeededEnv(0), secrets=["pass-phrase-x", ""])
    log.error("failed", error=ValueError(text), text=text, parts=[text], deep={"x": text})
    for secret in ("hunter2", SEED, "pass-phrase-x"):
        assert secret not in stream.getvalue()


def test_a_closed_stream_stops_nobody() -> None:
    stream = io.StringIO()
    stream.close()
    JsonLog("n1", stream=stream).info("event")


# -- spans


def test_without_an_endpoint_nothing_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", raising=False)
    tracing = start_tracing("n1", "s", "eu")
    assert isinstance(tracing, NoTracing)
    with tracing.span("snapshot", shard=1):
        pass
    tracing.close()


def test_spans_have_names_attributes_and_errors() -> None:
    export = pytest.importorskip("opentelemetry.sdk.trace.export")
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    from opentelemetry.sdk.trace import TracerProvider

    exporter = memory.InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(exporter))
    tracing = OtelTracing(provider.get_tracer("t"), provider)
    with pytest.raises(ValueError, match="broken"), tracing.span("snapshot", shard=3):
        raise ValueError("broken")
    (span,) = exporter.get_finished_spans()
    assert (span.name, dict(span.attributes)) == ("onefold.snapshot", {"onefold.shard": 3})
    assert not span.status.is_ok
    tracing.close()
