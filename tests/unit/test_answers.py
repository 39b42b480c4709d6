"""What clients get of the deltas of a request."""

from openai.types import Completion

from sbp_ray.engine.answers import CompletionAnswer
from sbp_ray.engine.bodies import CompletionRequest
from sbp_ray.engine.messages import Accepted, Delta, ScoredToken

TOKENS = (
    ScoredToken(5, "the", -1.0, {"the": -1.0, "a": -0.5}),
    ScoredToken(6, " sea", -2.0, {" sea": -2.0}),
    ScoredToken(7, "!", -3.0, {"!": -3.0}),
)
DELTAS = [Delta(0, "the sea", 2, tokens=TOKENS[:2]), Delta(0, "!", 3, "stop", seed=4, tokens=TOKENS[2:])]


def answer(**fields: object) -> CompletionAnswer:
    request = CompletionRequest.model_validate({"model": "synthesizer", "prompt": "x", **fields})
    answer = CompletionAnswer(request)
    answer.begin(Accepted(prompt_tokens=2, seed=9, synthesizer="f", deltas=[]))
    return answer


def test_log_probabilities_come_in_openais_form_whole_or_as_a_stream() -> None:
    whole = answer(logprobs=1, return_token_ids=True)
    whole.add(DELTAS)
    [choice] = whole.whole()["choices"]
    assert choice["token_ids"] == [5, 6, 7]
    assert choice["logprobs"] == {
        "tokens": ["the", " sea", "!"],
        "token_logprobs": [-1.0, -2.0, -3.0],
        "top_logprobs": [{"the": -1.0, "a": -0.5}, {" sea": -2.0}, {"!": -3.0}],
        "text_offset": [0, 3, 7],
    }
    stream = answer(logprobs=1, stream=True)
    events = [event for delta in DELTAS for event in stream.events([delta])]
    assert [event["choices"][0]["logprobs"]["text_offset"] for event in events] == [[0, 3], [7]]
    assert all(Completion.model_validate(event | {"choices": []}) for event in events)


def test_without_them_there_are_none() -> None:
    plain = answer()
    plain.add(DELTAS)
    [choice] = plain.whole()["choices"]
    assert choice["logprobs"] is None
    assert "token_ids" not in choice


def test_usage_stands_in_each_event_where_it_is_asked_for() -> None:
    stream = answer(stream=True, stream_options={"continuous_usage_stats": True, "include_usage": True})
    events = [*stream.events(DELTAS[:1]), *stream.events(DELTAS[1:]), *stream.last_events()]
    assert [event["usage"]["completion_tokens"] for event in events] == [2, 3, 3]
    assert events[-1]["choices"] == []
    silent = answer(stream=True)
    assert [event["usage"] for event in silent.events(DELTAS[:1])] == [None]
    assert list(silent.last_events()) == []
