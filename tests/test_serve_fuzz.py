"""Requests generated from the server's own OpenAPI description: valid ones, and ones that break it.

Whatever arrives, there is an answer: never 5xx, errors of one shape, and the server goes on.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.serve_client import Served, eventually, saved_model, serve

schemathesis: Any = pytest.importorskip("schemathesis")
requests: Any = pytest.importorskip("requests")

FEW, MANY = 12, 850
"""Requests of each operation and kind: in the fast test, and in the slow one, where they are 10,000 together."""
CONTEXT = 48
"""Few bytes, so that requests for a whole window are soon answered."""
SHAPE = {"message", "type", "param", "code"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    model = saved_model(tmp_path_factory.mktemp("model") / "random", chat=True)
    with serve(model, "--context", str(CONTEXT), "--max-sequences", "16") as served:
        yield served
        assert "Traceback" not in served.server.messages, served.server.messages[-4000:]


def operations(server: Served) -> list[Any]:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    return [result.ok() for result in schema.get_all_operations()]


def check(response: Any, case: Any) -> None:
    """What holds for every answer."""
    shown = f"{case.as_curl_command()[:2000]}\n{response.status_code} {response.text[:2000]}"
    assert response.status_code < 500, shown
    if response.status_code == 429:
        assert response.headers.get("retry-after"), shown
    if response.status_code >= 400:
        content = response.json()
        assert set(content) == {"error"} and set(content["error"]) >= SHAPE, shown
        assert isinstance(content["error"]["message"], str) and "\n" not in content["error"]["message"], shown
        return
    assert response.status_code == 200, shown
    kind = response.headers["content-type"]
    if kind.startswith("text/event-stream"):
        assert response.content.endswith(b"data: [DONE]\n\n"), shown
    elif kind.startswith("application/json"):
        response.json()


def fuzz(server: Served, examples: int) -> Counter[tuple[str, int]]:
    """Statuses by operation. A connection that is dropped raises."""
    statuses: Counter[tuple[str, int]] = Counter()
    session = requests.Session()
    session.trust_env = False
    for operation in operations(server):
        for mode in schemathesis.GenerationMode:

            @settings(
                max_examples=examples if operation.method.upper() == "POST" else 2,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate],
                database=None,
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def send(case: Any) -> None:
                # Not `case.call`, which reads only so many events of a stream and sends again what got no answer.
                sent = case.as_transport_kwargs(base_url=server.url)
                response = session.request(**sent, timeout=120)
                check(response, case)
                statuses[case.operation.label, response.status_code] += 1

            try:
                send()
            except schemathesis.errors.InvalidSchema:
                raise
            except Exception as error:
                if "Unsatisfiable" in type(error).__name__:
                    continue  # nothing breaks an operation that takes nothing
                raise
    return statuses


def test_generated_requests(server: Served) -> None:
    statuses = fuzz(server, FEW)
    labels = {label for label, _ in statuses}
    assert {"POST /v1/completions", "POST /v1/chat/completions", "POST /tokenize", "POST /v1/patches"} <= labels
    assert server.alive()


@pytest.mark.slow
def test_10_000_generated_requests(server: Served) -> None:
    statuses = fuzz(server, MANY)
    print(dict(sorted(statuses.items())), sum(statuses.values()))
    assert sum(statuses.values()) >= 10_000
    posted = {label for label, _ in statuses if label.startswith("POST")}
    for label in posted:
        assert statuses[label, 200] > 0, f"no request of {label} was a good one"
    assert eventually(server.idle) and server.alive()
