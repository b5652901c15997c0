"""What clients may send, and what of it reaches the engine."""

import json
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from bltkit.data.template import RECORD_KEY, ChatTemplate
from bltkit.generate import Request, Sampling, Speculative, Utf8
from bltkit.serve.errors import ApiError, explained
from bltkit.serve.protocol import ChatRequest, CompletionRequest, DetokenizeRequest, ScoreRequest, TokenizeRequest
from bltkit.serve.tokens import EOS_NAME
from bltkit.serve.work import CompletionWork, chat_work, completion_work
from bltkit.vocab import BOS, EOS, OFFSET
from tests.serve_fake import info

SECRET = "Zq7 secret \u2603"
CHAT = [{"role": "user", "content": "x"}]


def refused(kind: type[BaseModel], body: Any) -> ApiError:
    with pytest.raises(ValidationError) as error:
        kind.model_validate(body)
    refusal = explained(error.value, kind)
    assert refusal.status == 400 and "\n" not in refusal.message
    assert "Zq7" not in json.dumps(refusal.content) and "secret" not in json.dumps(refusal.content)
    return refusal


def completion(**fields: Any) -> CompletionWork:
    body = {"prompt": "x", "seed": 5, **fields}
    return completion_work(CompletionRequest.model_validate(body), info())


def chat(**fields: Any) -> CompletionWork:
    body = {"messages": CHAT, "seed": 5, **fields}
    return chat_work(ChatRequest.model_validate(body), info(), ChatTemplate())


def only(work: CompletionWork) -> Request:
    ((request,),) = work.requests
    return request


def test_defaults_are_openais() -> None:
    assert only(completion()) == Request(sampling=Sampling(temperature=1.0, seed=5), max_bytes=16)
    request = only(chat())
    assert request.sampling == Sampling(temperature=1.0, seed=5)
    size = len(ChatTemplate().render(CHAT, add_generation_prompt=True).data)
    assert request.max_bytes == 100 - size, "the rest of the window"
    assert request.stop == (ChatTemplate().stop,)


def test_fields_reach_the_engine() -> None:
    work = completion(
        max_tokens=9,
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        min_p=0.1,
        repetition_penalty=1.5,
        repetition_window=10,
        n=3,
        stop=["a", "é"],
        logit_bias={"70": -100, "2": 5.5},
        strategy="speculative",
        draft=3,
        valid_utf8=True,
        logprobs=4,
    )
    (requests,) = work.requests
    assert [request.sampling.seed for request in requests] == [5, 6, 7]
    sampling = Sampling(
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        min_p=0.1,
        repetition_penalty=1.5,
        repetition_window=10,
        seed=5,
        logit_bias=((2, 5.5), (70, -100.0)),
    )
    expected = Request(sampling, 9, (b"a", "é".encode()), Utf8(), True, 4, Speculative(draft=3))
    assert requests[0] == expected


def test_values_that_change_nothing_are_accepted() -> None:
    neutral = {
        "top_p": 1,
        "top_k": 0,
        "n": None,
        "best_of": 1,
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "suffix": None,
        "user": "u",
        "stop": None,
        "logit_bias": None,
        "stream": False,
        "logprobs": None,
        "max_tokens": None,
        "echo": False,
    }
    assert completion(**neutral) == completion(top_k=-1)
    more = {
        "tools": [],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "metadata": {},
        "store": False,
        "reasoning_effort": None,
        "service_tier": "auto",
        "logprobs": False,
        "safety_identifier": "id",
    }
    assert chat(**more) == chat()
    message = {"role": "assistant", "content": "y", "tool_calls": None, "refusal": None, "annotations": []}
    assert chat(messages=[*CHAT, message, *CHAT], max_tokens=1).prompts == (
        chat(messages=[*CHAT, {"role": "assistant", "content": "y"}, *CHAT], max_tokens=1).prompts
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("best_of", 2),
        ("suffix", SECRET),
        ("frequency_penalty", 0.5),
        ("presence_penalty", -1),
        ("frequency_penalty", False),
        ("max_tokens", -1),
        ("max_tokens", "16"),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("max_completion_tokens", 17),
        ("temperature", -0.1),
        ("temperature", 1e300),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_k", -2),
        ("top_k", True),
        ("n", 0),
        ("n", 129),
        ("seed", 2**63),
        ("seed", SECRET),
        ("stop", ""),
        ("stop", [SECRET, ""]),
        ("stop", [SECRET, 1]),
        ("stop", [SECRET] * 33),
        ("stop", SECRET * 200),
        ("logprobs", 21),
        ("logprobs", True),
        ("logit_bias", {SECRET: 1}),
        ("logit_bias", {"70": SECRET}),
        ("logit_bias", {"70": 101}),
        ("logit_bias", {"3": 1}),
        ("logit_bias", {"260": 1}),
        ("logit_bias", {"070": 1, "70": 2}),
        ("logit_bias", [70]),
        ("echo", 1),
        ("stream", "true"),
        ("stream_options", SECRET),
        ("stream_options", {"include_usage": True}),
        ("user", [SECRET]),
        ("strategy", [SECRET]),
        ("prompt", {SECRET: SECRET}),
        ("prompt", [SECRET, 5]),
        ("prompt", [[5], SECRET]),
        ("prompt", [0]),
        ("prompt", [3]),
        ("prompt", [260]),
        ("prompt", [-(10**100)]),
        ("prompt", [True]),
        ("prompt", [5.5]),
        ("prompt", [[[5]]]),
        ("prompt", [5.0, -(10**400)]),
        ("prompt", [SECRET] * 4097),
        ("prompt", 5),
        ("tempreature", 1),
    ],
)
def test_what_is_wrong_is_named(field: str, value: Any) -> None:
    error = refused(CompletionRequest, {"prompt": "x", "max_tokens": 16, field: value})
    assert error.param == field and field in error.message


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("messages", SECRET, "messages"),
        ("messages", [], "messages"),
        ("messages", [SECRET], "messages[0]"),
        ("messages", [{"role": SECRET, "content": "x"}], "messages[0].role"),
        ("messages", [*CHAT, {"role": "user"}], "messages[1].content"),
        ("messages", [{"role": "user", "content": None}], "messages[0].content"),
        ("messages", [{"role": "user", "content": [{"type": "text"}]}], "messages[0].content"),
        ("messages", [{"role": "user", "content": "x", "tool_calls": [{SECRET: 1}]}], "messages[0].tool_calls"),
        ("tools", [{"type": "function", "function": {"name": SECRET}}], "tools"),
        ("tool_choice", "required", "tool_choice"),
        ("functions", [{}], "functions"),
        ("reasoning_effort", "high", "reasoning_effort"),
        ("modalities", ["audio"], "modalities"),
        ("top_logprobs", 2, "top_logprobs"),
        ("logprobs", 2, "logprobs"),
        ("prompt", "x", "prompt"),
    ],
)
def test_what_is_wrong_in_a_chat_is_named(field: str, value: Any, param: str) -> None:
    error = refused(ChatRequest, {"messages": CHAT, field: value})
    assert error.param is not None and error.param.startswith(param), error.content
    assert param in error.message


def test_a_misspelt_field_is_told_the_nearest_one() -> None:
    assert "did you mean temperature?" in refused(CompletionRequest, {"prompt": "x", "tempreature": 1}).message
    # Names that do not look like names are not repeated.
    assert refused(CompletionRequest, {"prompt": "x", SECRET: 1}).param is None
    assert "prompt: is missing" in refused(CompletionRequest, {}).message


def test_prompts_in_every_form() -> None:
    data = "é".encode()
    ids = [byte + OFFSET for byte in data]
    for prompt in ("é", ids, [BOS, *ids], ["é"], [ids], [[BOS, *ids]]):
        (sent,) = completion(prompt=prompt).prompts
        assert sent.ids == (BOS, *ids) and sent.size == 2 and sent.data == data
    for prompt in ("", [], [BOS], [""], [[]], None):
        (sent,) = completion(prompt=prompt).prompts
        assert sent.ids == (BOS,) and sent.size == 0
    assert [sent.data for sent in completion(prompt=["a", "", "b"]).prompts] == [b"a", b"", b"b"]
    (sent,) = completion(prompt=[EOS, *ids]).prompts
    assert sent.ids == (BOS, EOS, *ids) and sent.sent == (EOS, *ids)
    assert completion(prompt=["a", "b"], n=2).choices == 4


def test_whole_numbers_may_be_written_with_a_point() -> None:
    """As JSON's schema has it, and JavaScript knows no other numbers."""
    assert completion(max_tokens=4.0, n=2.0, seed=5.0, top_k=3.0, prompt=[70.0]) == (
        completion(max_tokens=4, n=2, top_k=3, prompt=[70])
    )
    assert completion(top_k=-1.0) == completion()


def test_more_sequences_than_the_server_takes_are_refused_at_once() -> None:
    body = CompletionRequest.model_validate({"prompt": ["x"] * 4, "n": 2})
    assert completion_work(body, info(sequences=4, waiting=4)).choices == 8
    with pytest.raises(ApiError, match="8 sequences") as error:
        completion_work(body, info(sequences=3, waiting=4))
    assert error.value.param == "n"


def test_eos_may_be_a_stop_string() -> None:
    assert only(completion(stop=EOS_NAME)).stop == ()
    assert only(completion(stop=["a", EOS_NAME])).stop == (b"a",)


def test_a_seed_is_drawn_where_there_is_none() -> None:
    seeds = {only(completion(seed=None)).sampling.seed for _ in range(8)}
    assert len(seeds) == 8 and all(0 <= seed < 2**31 for seed in seeds)


def test_what_is_too_long_is_refused_with_both_numbers() -> None:
    assert only(completion(prompt="x" * 90, max_tokens=10)).max_bytes == 10
    for fields in ({"prompt": "x" * 101, "max_tokens": 0}, {"prompt": ["x", "x" * 91], "max_tokens": 10}):
        with pytest.raises(ApiError) as error:
            completion(**fields)
        assert error.value.status == 400 and "101" in error.value.message and "100" in error.value.message
        assert error.value.code == "context_length_exceeded"
    with pytest.raises(ApiError, match="100"):
        chat(messages=[{"role": "user", "content": "x" * 100}])
    assert only(completion(prompt=[BOS, *[70] * 90], max_tokens=10)).max_bytes == 10, "BOS takes no room"


@pytest.mark.parametrize(
    "strategy", [SECRET, "spekulative", "diffusion:alpha=" + SECRET, "ar:draft=3", "speculative:x"]
)
def test_a_strategy_that_is_none(strategy: str) -> None:
    with pytest.raises(ApiError) as error:
        completion(strategy=strategy)
    assert error.value.param == "strategy" and "Zq7" not in error.value.message


def test_fields_of_strategies_are_checked() -> None:
    with pytest.raises(ApiError) as error:
        completion(strategy="ar", draft=3)
    assert error.value.status == 400 and "draft" in error.value.message
    with pytest.raises(ApiError, match="alpha"):
        completion(strategy="diffusion", alpha=3.0)


def test_chats_need_a_template_and_no_marks() -> None:
    body = ChatRequest.model_validate({"messages": CHAT})
    with pytest.raises(ApiError, match="chat template") as error:
        chat_work(body, info(), ChatTemplate.of_record(info().record))
    assert error.value.code == "no_chat_template"
    template = ChatTemplate.of_record(info(record={RECORD_KEY: ChatTemplate().model_dump()}).record)
    assert chat_work(body, info(), template).choices == 1
    with pytest.raises(ApiError) as error:
        chat(messages=[{"role": "user", "content": SECRET + "\x03"}])
    assert error.value.param == "messages" and "Zq7" not in error.value.message


def test_roles_and_parts() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [
        {"role": "developer", "content": "d"},
        {"role": "user", "content": parts},
        {"role": "tool", "content": "t", "tool_call_id": "1"},
    ]
    plain = [{"role": "system", "content": "d"}, {"role": "user", "content": "ab"}, {"role": "tool", "content": "t"}]
    assert chat(messages=messages, max_tokens=1).prompts == chat(messages=plain, max_tokens=1).prompts


def test_other_bodies() -> None:
    assert TokenizeRequest.model_validate({"prompt": "x"}).add_special_tokens is None
    assert refused(TokenizeRequest, {"prompt": 5}).param == "prompt"
    assert refused(DetokenizeRequest, {"tokens": "x"}).param == "tokens"
    assert refused(DetokenizeRequest, {"tokens": [1000]}).param == "tokens"
    assert ScoreRequest.model_validate({"input": ["a", "b"]}).input == ("a", "b")
    assert refused(ScoreRequest, {"input": "a", "echo": True}).param == "echo"
