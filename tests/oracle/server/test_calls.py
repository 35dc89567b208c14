"""The official clients of OpenAI and Ollama call functions of a real server."""

import json

import pytest
from pydantic import BaseModel, ConfigDict, Field

openai = pytest.importorskip("openai", reason="openai is not installed")
ollama = pytest.importorskip("ollama", reason="ollama is not installed")

ASKED = [{"role": "user", "content": "What is the weather in Paris?"}]
TOLD = {"model": "tiny", "temperature": 2.0, "max_tokens": 150}
NAMED = {"type": "function", "function": {"name": "Weather"}}


class Weather(BaseModel):
    """Tells the weather."""

    model_config = ConfigDict(extra="forbid")

    city: str = Field(max_length=5)
    days: int = Field(ge=1, le=7)


class Clock(BaseModel):
    """Tells the time."""

    model_config = ConfigDict(extra="forbid")

    utc: bool


TOOLS = [openai.pydantic_function_tool(Weather), openai.pydantic_function_tool(Clock)]
KINDS = {"Weather": Weather, "Clock": Clock}


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.v1, api_key="none", max_retries=0) as made:
        yield made


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_openai_is_answered_with_valid_calls(client, choice):
    for seed in range(4):
        told = TOLD | {"tools": TOOLS, "tool_choice": choice, "seed": seed, "parallel_tool_calls": False}
        made = client.chat.completions.create(messages=ASKED, **told).choices[0]
        [call] = made.message.tool_calls
        assert made.finish_reason == "tool_calls" and made.message.content is None
        KINDS[call.function.name].model_validate_json(call.function.arguments)
        assert choice == "required" or call.function.name == "Weather"
        with client.chat.completions.stream(messages=ASKED, **told) as stream:
            for _ in stream:
                pass
            streamed = stream.get_final_completion().choices[0]
        assert streamed.finish_reason == "tool_calls" and streamed.message.content is None
        assert streamed.message.tool_calls[0].function.arguments == call.function.arguments
        parsed = client.chat.completions.parse(messages=ASKED, **told).choices[0].message.tool_calls[0]
        assert isinstance(parsed.function.parsed_arguments, KINDS[call.function.name])


def test_parallel_calls_and_their_results(client):
    tools = [{"type": "function", "function": {"name": name}} for name in ("left", "right")]
    for seed in range(20):
        told = TOLD | {"tools": tools, "tool_choice": "required", "seed": seed, "max_tokens": 300}
        made = client.chat.completions.create(messages=ASKED, **told).choices[0]
        if made.finish_reason == "tool_calls" and len(made.message.tool_calls) > 1:
            break
    else:
        pytest.fail("no seed gives two calls")
    results = [{"role": "tool", "tool_call_id": one.id, "content": "{}"} for one in made.message.tool_calls]
    talk = [*ASKED, made.message.model_dump(exclude_none=True), *results]
    after = client.chat.completions.create(messages=talk, model="tiny", tools=tools, max_tokens=8)
    assert after.choices[0].message.content and after.usage.prompt_tokens_details.cached_tokens > 0


def test_responses_call_whole_and_streamed(client):
    tools = [{"type": "function", "strict": True, **one["function"]} for one in TOOLS]
    told = {"model": "tiny", "input": "Weather?", "tools": tools, "tool_choice": "required", "temperature": 0}
    told |= {"parallel_tool_calls": False, "max_output_tokens": 150}
    whole = client.responses.create(**told)
    [call] = whole.output
    KINDS[call.name].model_validate_json(call.arguments)
    with client.responses.stream(**told) as stream:
        kinds = [event.type for event in stream]
        [streamed] = stream.get_final_response().output
    assert (streamed.name, streamed.arguments) == (call.name, call.arguments)
    assert kinds.count("response.function_call_arguments.done") == 1
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "wet"}
    after = client.responses.create(
        model="tiny", previous_response_id=whole.id, input=[result], tools=tools, max_output_tokens=8
    )
    assert after.output_text


def test_a_cut_call_is_told_as_unfinished(client):
    told = {"model": "tiny", "messages": ASKED, "tools": TOOLS, "tool_choice": NAMED, "max_tokens": 6}
    made = client.chat.completions.create(**told).choices[0]
    assert made.finish_reason == "length"
    for call in made.message.tool_calls or ():
        with pytest.raises(ValueError):
            json.loads(call.function.arguments)
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(**told)


def test_ollama_is_answered_whole_and_streamed(server):
    """Ollama has no tool_choice, and the embedded model never calls: what is sent and read is checked."""
    client = ollama.Client(host=server.url)

    def weather(city: str, days: int) -> str:
        """Tells the weather.

        Args:
            city: a town
            days: how many
        """
        return city * days

    told = {"model": "tiny", "tools": [weather], "options": {"temperature": 0, "num_predict": 12}}
    call = {"function": {"name": "weather", "arguments": {"city": "Paris", "days": 1}}}
    talk = [*ASKED, {"role": "assistant", "content": "", "tool_calls": [call]}]
    talk.append({"role": "tool", "tool_name": "weather", "content": "wet"})
    whole = client.chat(messages=talk, **told)
    streamed = "".join(piece.message.content for piece in client.chat(messages=talk, stream=True, **told))
    assert whole.message.content == streamed and whole.message.tool_calls is None
    assert "tools" in client.show("tiny").capabilities
    client._client.close()
