"""Rerank over HTTP: every dialect's body in and out, limits before anything costs, and one engine for all who ask."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("fastapi", reason="FastAPI is not installed; '.[serve]' brings it")

from fastapi.testclient import TestClient
from starlette.requests import ClientDisconnect

from r1ranker.errors import UserError
from r1ranker.ranking.conversation import RankingResult
from r1ranker.ranking.ranker import Ranker
from r1ranker.serving.app import create_app
from r1ranker.serving.dialects import BadRequest, answer_rerank, parse_rerank, relevance_scores
from r1ranker.serving.limits import Limits, check_key, measure_nesting, read_body
from r1ranker.serving.rank_calls import parse_rank
from r1ranker.serving.scheduler import EngineDead, Scheduler
from r1ranker.serving.server import read_keys
from r1ranker.serving.service import Service
from r1ranker.tasks.example import RankingExample

NAMES = ("passage 0", "passage 1", "passage 2")
RANKED = RankingResult(("passage 2", "passage 0", "passage 1"), thoughts=["so"], prompt_tokens=50, response_tokens=7)
DOCUMENTS = ["one", "two", "three"]


def answered(body: dict[str, Any], prefix: str = "", result: RankingResult = RANKED) -> Any:
    return answer_rerank(parse_rerank(body, prefix), result, NAMES, "m", "id-1")


def test_cohere_jina_and_vllm_read_one_answer() -> None:
    body = {
        "model": "any",
        "query": "q",
        "documents": DOCUMENTS,
        "top_n": 2,
        "return_documents": True,
        "priority": None,
    }
    assert answered(body) == {
        "id": "id-1",
        "model": "m",
        "results": [
            {"index": 2, "relevance_score": 1.0, "document": {"text": "three"}},
            {"index": 0, "relevance_score": pytest.approx(2 / 3), "document": {"text": "one"}},
        ],
        "usage": {"prompt_tokens": 50, "total_tokens": 57},
        "meta": {
            "api_version": {"version": "2"}, "billed_units": {"search_units": 1},
            "warnings": ["relevance_score is a rank percentile, (n - rank) / n with rank 0 for the best: this strategy has no probabilities"],
        },
    }  # fmt: skip
    plain = answered({"query": "q", "documents": [{"text": "one"}, "two", {"text": "three", "id": 7}], "top_n": 0})
    assert [sorted(item) for item in plain["results"]] == [["index", "relevance_score"]] * 3
    assert answered(body | {"return_thoughts": True})["thoughts"] == ["so"]


def test_voyage_infinity_tei_and_weaviate_have_their_own() -> None:
    voyage = answered(
        {"query": "q", "documents": DOCUMENTS, "top_k": 1, "truncation": True, "return_documents": "true"}
    )
    assert voyage == {
        "object": "list", "data": [{"index": 2, "relevance_score": 1.0, "document": "three"}], "model": "m",
        "usage": {"prompt_tokens": 50, "total_tokens": 57},
    }  # fmt: skip
    infinity = answered({"query": "q", "documents": DOCUMENTS, "return_documents": True}, "infinity")
    assert [item["document"] for item in infinity["results"]] == ["three", "one", "two"]
    tei = answered({"query": "q", "texts": DOCUMENTS, "return_text": True, "top_n": 1, "truncate": None})
    assert tei == [
        {"index": place, "score": pytest.approx(score), "text": DOCUMENTS[place]} for place, score in ((2, 1), (0, 2 / 3), (1, 1 / 3))
    ]  # fmt: skip
    weaviate = answered({"query": "q", "documents": DOCUMENTS, "property": "content"})
    assert [(one["document"], round(one["score"], 3)) for one in weaviate["scores"]] == [
        ("one", 0.667), ("two", 0.333), ("three", 1.0),
    ]  # fmt: skip


def test_scores_are_probabilities_where_there_are_any() -> None:
    weighed = replace(RANKED, scores={"passage 2": 0.7, "passage 0": 0.2, "passage 1": 0.1})
    assert relevance_scores(weighed) == (weighed.scores, True)
    found = answered({"query": "q", "documents": DOCUMENTS}, result=weighed)
    assert [item["relevance_score"] for item in found["results"]] == [0.7, 0.2, 0.1]
    assert "warnings" not in found["meta"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ([], "the body is a list; an object with query and documents is wanted"),
        ({"documents": ["a"]}, "query: found nothing; a text is wanted"),
        ({"query": "q", "documents": []}, "documents: found an empty list; a list of texts is wanted"),
        ({"query": "q", "documents": "a"}, "documents: found a text; a list"),
        ({"query": "q", "texts": [1]}, r"texts\[0\]: found a number; a text"),
        ({"query": "q", "documents": ["a", {"body": "b"}]}, r"documents\[1\]: found nothing; a text, or an object"),
        ({"query": "q", "documents": ["a"], "top_n": -1}, "top_n: found '-1'; a whole number from 0 is wanted"),
        ({"query": "q", "documents": ["a"], "top_n": True}, "top_n: found 'True'"),
        ({"query": "q", "documents": ["a"], "return_documents": 3}, "return_documents: found '3'; true or false"),
        ({"query": "\ud800", "documents": ["a"]}, "half a surrogate pair"),
    ],
)
def test_what_cannot_be_served_is_said_in_a_line(body: Any, said: str) -> None:
    with pytest.raises(BadRequest, match=said) as caught:
        parse_rerank(body)
    assert caught.value.status == 400


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FIELDS = (
    "query",
    "documents",
    "texts",
    "top_n",
    "top_k",
    "return_documents",
    "truncation",
    "property",
    "return_thoughts",
)


@given(st.dictionaries(st.sampled_from(FIELDS), json_values | st.lists(st.text(), max_size=4)) | json_values)
def test_any_body_is_served_or_refused(body: Any) -> None:
    refused: BadRequest | None = None
    try:
        assert parse_rerank(body).documents
    except BadRequest as error:
        refused = error
    assert refused is None or (400 <= refused.status < 500 and "\n" not in str(refused))


@given(json_values)
def test_nesting_is_that_of_the_parsed_body(value: Any) -> None:
    def depth(inner: Any) -> int:
        children = inner.values() if isinstance(inner, dict) else inner if isinstance(inner, list) else None
        return 0 if children is None else 1 + max(map(depth, children), default=0)

    assert measure_nesting(json.dumps(value).encode(), 100) == depth(value)


def read(pieces: list[bytes], limits: Limits, headers: dict[str, str] | None = None) -> Any:
    async def stream() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    return asyncio.run(read_body(stream(), headers or {}, limits))


def test_a_body_costs_nothing_before_its_bounds_are_known() -> None:
    limits = Limits(body_bytes=100, nesting=3)
    assert read([b'{"a"', b": [1]}"], limits) == {"a": [1]}
    for pieces, headers, said, status in (
        ([], {"content-length": "101"}, "a body of 101 bytes; at most 100 are served", 413),
        ([b"x" * 60, b"x" * 60], {}, "more than 100 bytes", 413),
        ([b"[" * 50], {}, "nested more than 3 deep", 400),
        ([b'{"a": NaN}'], {}, "the body is no JSON", 400),
        ([b"\xff\xfe"], {}, "the body is no JSON", 400),
        ([b""], {}, "the body is no JSON", 400),
    ):
        with pytest.raises(BadRequest, match=said) as caught:
            read(list(pieces), limits, headers)
        assert caught.value.status == status


def test_a_body_that_does_not_come_or_breaks_off_is_given_up() -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    async def cut() -> AsyncIterator[bytes]:
        yield b"{"
        raise ClientDisconnect

    for stream, said, status in ((slow(), "has not come whole in 0.05 s", 408), (cut(), "broke off", 499)):
        with pytest.raises(BadRequest, match=said) as caught:
            asyncio.run(read_body(stream, {}, Limits(body_s=0.05)))
        assert caught.value.status == status


def test_keys_are_wanted_where_there_are_any(tmp_path: Any) -> None:
    file = tmp_path / "keys"
    file.write_text("secret\n\n other \n")
    keys = read_keys(str(file))
    assert keys == {"secret", "other"}
    check_key({}, frozenset())
    for headers in ({"authorization": "Bearer secret"}, {"authorization": "bearer other"}, {"x-api-key": "secret"}):
        check_key(headers, keys)
    for headers in ({}, {"authorization": "Bearer secre"}, {"authorization": "Basic secret"}, {"x-api-key": "é"}):
        with pytest.raises(BadRequest) as caught:
            check_key(headers, keys)
        assert caught.value.status == 401
    file.write_text("\n")
    with pytest.raises(UserError, match="found no key"):
        read_keys(str(file))
    with pytest.raises(UserError, match="cannot be read"):
        read_keys(str(tmp_path / "gone"))


@pytest.fixture(scope="module")
def ranker(tiny_model: str) -> Ranker:
    return Ranker.from_pretrained(
        tiny_model, "iterative", "candidates", think=False, answer_style="label", max_tokens=8
    )


@pytest.fixture
def serve(ranker: Ranker) -> Iterator[Callable[..., TestClient]]:
    opened: list[TestClient] = []

    def start(**changes: Any) -> TestClient:
        client = TestClient(create_app(Service(ranker, "tiny", "Passage-9", **changes)), raise_server_exceptions=False)
        opened.append(client.__enter__())
        return client

    yield start
    for client in opened:
        client.__exit__(None, None, None)


def bodies(count: int) -> list[dict[str, Any]]:
    return [
        {"query": f"question {n}", "documents": [f"text {n} {place * 7 % 5}" for place in range(2 + n % 4)]}
        for n in range(count)
    ]


def test_many_at_once_get_what_each_gets_alone(serve: Callable[..., TestClient], ranker: Ranker) -> None:
    asked = bodies(40)
    alone = []
    for body in asked:
        names = tuple(f"passage {place}" for place in range(len(body["documents"])))
        example = RankingExample("Passage-9", names, query=body["query"], texts=tuple(body["documents"]))
        alone.append([names.index(name) for name in next(ranker.rank_many([example])).ranking])
    client = serve()
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda body: client.post("/v2/rerank", json=body), asked))
    assert {one.status_code for one in found} == {200}
    assert [[item["index"] for item in one.json()["results"]] for one in found] == alone
    said = client.get("/metrics").text
    assert 'r1ranker_requests_total{dialect="common",path="/rerank",status="200"} 40.0' in said
    assert "r1ranker_open_requests 0.0" in said


def test_a_query_is_the_history_where_a_task_asks_with_one(ranker: Ranker) -> None:
    asked: list[RankingExample] = []

    class Noting(Service):
        async def rank(self, example: RankingExample, *_: Any, **__: Any) -> RankingResult:
            asked.append(example)
            return RankingResult(example.candidates)

    call = parse_rerank({"query": "Alien\n\n Blade Runner ", "documents": ["Aliens", "Heidi"]}, "")
    for task in ("Rec-Movie", "Router-Cost"):
        asyncio.run(Noting(ranker, "tiny", task).rerank(call))
    films, llms = asked
    assert (films.query, films.history, films.texts) == ("", ("Alien", "Blade Runner"), ("Aliens", "Heidi"))
    assert (llms.query, llms.history) == (call.query, ())


def test_paths_as_clients_join_them(serve: Callable[..., TestClient]) -> None:
    client, (body,) = serve(), bodies(1)
    for path in ("/rerank", "/v1/rerank", "/v2/rerank", "/v1/v2/rerank", "//v1//rerank/", "/infinity/rerank"):
        assert client.post(path, json=body).status_code == 200, path
    assert isinstance(client.post("/tei/rerank", json={"query": "q", "texts": ["a", "b"]}).json(), list)
    assert client.get("/v1/models").json()["data"][0]["id"] == "tiny"
    assert client.get("/info").json()["model_type"]["reranker"]
    assert client.get("/health").status_code == 200
    assert "Order documents" in client.get("/openapi.json").text
    assert client.get("/nothing").status_code == 404


def test_errors_are_in_the_words_of_the_asker(serve: Callable[..., TestClient]) -> None:
    client = serve(limits=Limits(documents=3, characters=100, body_bytes=2000), keys=frozenset(["k"]))
    client.headers["Authorization"] = "Bearer k"
    refused = client.post("/rerank", json={"query": "q", "documents": ["a"] * 4})
    assert refused.status_code == 413
    message = "found 4 documents; at most 3 are served"
    assert refused.json() == {
        "message": message, "detail": message,
        "error": {"message": message, "type": "invalid_request_error", "code": 413},
    }  # fmt: skip
    assert client.post("/rerank", json={"query": "q", "texts": ["a" * 101]}).json() == {
        "error": "found texts of 102 characters; at most 100 are served", "error_type": "invalid_request_error",
    }  # fmt: skip
    assert client.post("/rerank", content=b"\xff").status_code == 400
    assert client.post("/rerank", content=b"[" * 1000).status_code == 400
    assert client.post("/rerank", content=b" " * 2001).status_code == 413
    client.headers["Authorization"] = "Bearer no"
    unknown = client.post("/rerank", json=bodies(1)[0])
    assert (unknown.status_code, unknown.headers["www-authenticate"]) == (401, "Bearer")
    assert [client.get(path).status_code for path in ("/health", "/ping", "/metrics", "/docs", "/info")] == [
        200, 200, 200, 401, 401,
    ]  # fmt: skip


def test_a_prompt_that_the_model_does_not_hold_is_the_clients_to_mend(serve: Callable[..., TestClient]) -> None:
    long = "word " * 200_000
    refused = serve().post("/rerank", json={"query": long, "documents": ["a", "b"]})
    assert refused.status_code == 400
    assert "Traceback" not in refused.text


def test_another_strategy_is_asked_in_rounds_of_its_own(ranker: Ranker) -> None:
    in_turns = Ranker(ranker.engine, ranker.tokenizer, replace(ranker.settings, rounds="conversation"))
    service = Service(in_turns, "tiny", "Passage-9")
    assert service._ranker_of(None) is in_turns
    assert service._ranker_of("iterative").settings.rounds == "conversation"
    for strategy in ("direct", "windows", "tournament"):
        assert service._ranker_of(strategy).settings.rounds == "separate"  # type: ignore[arg-type]


def test_our_own_requests_are_ranked_and_told_round_by_round(serve: Callable[..., TestClient], ranker: Ranker) -> None:
    client = serve()
    body = {
        "task": "Rec-Movie",
        "history": ["Alien", "Blade"],
        "candidates": ["Aliens", "Heidi", {"name": "Up", "text": "a balloon"}],
    }
    whole = client.post("/v1/rank", json=body).json()
    assert sorted(whole["ranking"]) == ["Aliens", "Heidi", "Up"]
    assert [["Aliens", "Heidi", "Up"][place] for place in whole["indices"]] == whole["ranking"]
    assert whole["cost"]["calls"] >= 2
    said = client.post("/v1/rank", json=body | {"stream": True})
    assert said.headers["content-type"].startswith("text/event-stream")
    events = [line.split("\n") for line in said.text.strip().split("\n\n")]
    assert [name for name, _ in events] == ["event: round"] * 2 + ["event: ranking"]
    told = [json.loads(data.removeprefix("data: ")) for _, data in events]
    out = [one for event in told[:-1] for one in event["out"]]
    assert [one["name"] for one in out] == whole["ranking"][:0:-1]
    assert [one["round"] for one in out] == [1, 2]
    assert told[-1] == whole
    weighed = client.post("/v1/rank", json=body | {"strategy": "logits"}).json()
    assert len(weighed["scores"]) == 3
    for changed, message in (
        ({"task": "Rec-Movies"}, "task: found 'Rec-Movies'"),
        ({"task": ["x"]}, "task: found"),
        ({"query": "q"}, "Rec-Movie wants history, a list of texts, and nothing else"),
        ({"candidates": ["a", "a"]}, "holds 'a' twice"),
        ({"candidates": [1]}, "candidates[0]: a name, or an object"),
        ({"strategy": "best"}, "strategy: found 'best'"),
        ({"steam": True}, "steam: no such field"),
    ):
        refused = client.post("/v1/rank", json=body | changed)
        assert (refused.status_code, message in refused.json()["detail"]) == (400, True), refused.text


@given(st.dictionaries(st.sampled_from(("query", "history", "candidates", "task", "strategy", "stream")), json_values))
def test_any_body_of_ours_is_ranked_or_refused(body: Any) -> None:
    refused: BadRequest | None = None
    try:
        assert parse_rank(body, "Passage-9").example.candidates
    except BadRequest as error:
        refused = error
    assert refused is None or (refused.status == 400 and "\n" not in str(refused))


class Stuck:
    """An engine whose requests end when they are let, or which fails."""

    def __init__(self) -> None:
        self.go, self.fails = threading.Event(), False
        self.open: dict[int, Any] = {}
        self.cancelled: list[int] = []

    def session(self, fair: bool = False) -> Stuck:
        assert fair
        return self

    def add(self, key: int, request: Any, params: Any) -> None:
        self.open[key] = request

    def step(self, once: bool = False) -> list[tuple[int, Any]]:
        if self.fails:
            raise RuntimeError("out of memory\nmore")
        if not self.go.wait(0.01):
            return []
        done, self.open = list(self.open.items()), {}
        return done

    def cancel(self, key: int) -> None:
        if self.open.pop(key, None) is not None:
            self.cancelled.append(key)


class StuckRanker:
    """Asks one question and then ranks as shown."""

    def __init__(self) -> None:
        self.engine = Stuck()

    def conversation(self, example: RankingExample, progress: RankingResult) -> Any:
        yield [example]
        return RankingResult(example.candidates)

    @property
    def asker(self) -> Any:
        from r1ranker.ranking.schedule import Asker

        return Asker(lambda question: (question, None), lambda *_: [])  # type: ignore[arg-type, return-value]


EXAMPLE = RankingExample("Passage-9", NAMES, query="q", texts=("a", "b", "c"))


def wait_for(what: Callable[[], object]) -> None:
    for _ in range(500):
        if what():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it did not come to pass within 5 s")


def test_what_nobody_waits_for_is_dropped_and_what_is_under_way_is_finished() -> None:
    ranker: Any = StuckRanker()
    scheduler = Scheduler(ranker)
    scheduler.start()
    first, second = scheduler.submit(EXAMPLE), scheduler.submit(EXAMPLE)
    wait_for(lambda: len(ranker.engine.open) == 2)
    scheduler.cancel(first)
    wait_for(lambda: ranker.engine.cancelled == [0])
    assert first.future.cancelled()
    assert not second.future.done()
    ranker.engine.go.set()
    assert scheduler.stop(5)
    assert second.future.result().ranking == NAMES


def test_a_dead_engine_is_heard_of_by_all_who_wait_and_all_who_come() -> None:
    ranker: Any = StuckRanker()
    died = threading.Event()
    scheduler = Scheduler(ranker, died.set)
    scheduler.start()
    waiting = scheduler.submit(EXAMPLE)
    wait_for(lambda: ranker.engine.open)
    ranker.engine.fails = True
    for job in (waiting, scheduler.submit(EXAMPLE)):
        with pytest.raises(EngineDead, match=r"^RuntimeError: out of memory$"):
            job.future.result(5)
    assert died.wait(5)
    with pytest.raises(EngineDead):
        scheduler.submit(EXAMPLE).future.result(5)


BODY = {"query": "q", "documents": ["a", "b"]}


def test_more_than_are_served_at_once_are_told_to_come_again() -> None:
    ranker: Any = StuckRanker()
    service = Service(ranker, "stuck", "Passage-9", Limits(concurrency=1))
    with TestClient(create_app(service)) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, "/rerank", json=BODY)
        wait_for(lambda: ranker.engine.open)
        busy = client.post("/rerank", json=BODY)
        assert (busy.status_code, busy.headers["retry-after"]) == (429, "1")
        ranker.engine.go.set()
        assert first.result().status_code == 200
        assert client.post("/rerank", json=BODY).status_code == 200


def test_what_takes_too_long_is_given_up_and_a_dead_engine_serves_nobody() -> None:
    ranker: Any = StuckRanker()
    service = Service(ranker, "stuck", "Passage-9", Limits(timeout_s=0.5))
    with TestClient(create_app(service)) as client:
        assert client.post("/rerank", json=BODY).status_code == 503
        wait_for(lambda: ranker.engine.cancelled)
        assert client.get("/health").status_code == 200
        ranker.engine.fails = True
        for _ in range(2):
            assert client.post("/rerank", json=BODY).status_code == 503
        assert client.get("/health").status_code == 503
