"""GET /metrics: numbers for Prometheus, under llama.cpp's names, and a few of ours.

Counters are since the start of the server, of requests that have ended; the rates are since the last look.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from etude.serve.native_route import native_route, unsupported
from etude.serve.operations import Operation
from etude.serve.server import Server, server_of

MEDIA_TYPE = "text/plain; version=0.0.4"
Metric = tuple[str, str, float]
"""name, what it is, value"""


async def metrics(request: HttpRequest) -> Response:
    """The text."""
    server = server_of(request)
    if not server.settings.shows_metrics:
        raise unsupported("This server does not support metrics endpoint. Start it with `--metrics`")
    text = "".join([*_lines("counter", counters(server)), *_lines("gauge", gauges(server))])
    server.scraped = replace(server.totals)
    response = Response(text, media_type=MEDIA_TYPE)
    # written as llama.cpp writes it: not every client reads headers in any case
    response.raw_headers.append((b"Process-Start-Time-Unix", str(int(server.started_at)).encode()))
    return response


def counters(server: Server) -> list[Metric]:
    """What only grows."""
    totals, (steps, _) = server.totals, server.pool.work_done()
    return [
        (
            "llamacpp:prompt_tokens_total",
            "Number of prompt tokens processed, excluding cached tokens",
            totals.prompt_tokens,
        ),
        (
            "llamacpp:prompt_tokens_cached_total",
            "Number of prompt tokens reused from the cache",
            totals.cached_tokens,
        ),
        ("llamacpp:prompt_seconds_total", "Total time spent processing prompts", totals.prompt_ms / 1e3),
        ("llamacpp:tokens_predicted_total", "Number of generation tokens processed", totals.predicted_tokens),
        (
            "llamacpp:tokens_predicted_seconds_total",
            "Total time spent generating tokens",
            totals.predicted_ms / 1e3,
        ),
        ("llamacpp:n_decode_total", "Total number of model steps", steps),
        ("llamacpp:n_tokens_max", "Largest observed sequence length (prompt + generation)", totals.longest),
        ("llamacpp:spec_decode_num_draft_tokens_total", "Speculative: Total draft tokens generated", 0),
        (
            "llamacpp:spec_decode_num_accepted_tokens_total",
            "Speculative: Total draft tokens accepted by the target model",
            0,
        ),
        (
            "llamacpp:spec_decode_num_drafts_total",
            "Speculative: Total speculative decoding verification steps",
            0,
        ),
        ("etude:requests_total", "Requests that have ended", totals.requests),
        ("etude:requests_aborted_total", "Requests whose client left before their end", totals.aborted),
        ("etude:requests_refused_total", "Requests refused because too much waited", totals.refused),
    ]


def gauges(server: Server) -> list[Metric]:
    """What goes up and down."""
    now, then, (steps, drawn) = server.totals, server.scraped, server.pool.work_done()
    read = now.prompt_tokens - then.prompt_tokens, now.prompt_ms - then.prompt_ms
    written = now.predicted_steps - then.predicted_steps, now.predicted_ms - then.predicted_ms
    tables = server.slots.values()
    return [
        ("llamacpp:prompt_tokens_seconds", "Average prompt throughput in tokens/s", _rate(*read)),
        ("llamacpp:predicted_tokens_seconds", "Average generation throughput in tokens/s", _rate(*written)),
        (
            "llamacpp:requests_processing",
            "Number of requests processing",
            sum(table.n_busy for table in tables),
        ),
        (
            "llamacpp:requests_deferred",
            "Number of requests deferred",
            sum(table.n_waiting for table in tables),
        ),
        (
            "llamacpp:n_busy_slots_per_decode",
            "Average number of busy slots per model step",
            drawn / max(steps, 1),
        ),
    ]


def _rate(n: float, ms: float) -> float:
    return 1e3 * n / ms if ms > 0 else 0.0


def _lines(kind: str, found: Iterable[Metric]) -> list[str]:
    return [
        f"# HELP {name} {text}\n# TYPE {name} {kind}\n{name} {value:.10g}\n" for name, text, value in found
    ]


ROUTES = [native_route("/metrics", metrics, "GET")]
OPERATIONS = (Operation("get", "/metrics", "Numbers for Prometheus"),)
