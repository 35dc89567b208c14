"""langchain-openai against a real server."""

import asyncio

import pytest

from gemworks import LLM

langchain_openai = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")

# langchain's own warnings are for its developers.
pytestmark = pytest.mark.filterwarnings("ignore")

ASKED = "What is the capital of France?"


@pytest.fixture(scope="module")
def chat(server):
    told = {"base_url": server.v1, "api_key": "none", "model": "tiny", "temperature": 0, "max_tokens": 24}
    return langchain_openai.ChatOpenAI(**told, max_retries=0)


@pytest.fixture(scope="module")
def expected():
    llm = LLM("tiny")
    yield llm.chat([{"role": "user", "content": ASKED}], temperature=0.0, max_tokens=24)
    llm.close()


def test_it_invokes_streams_and_batches(chat, expected):
    answer = chat.invoke(ASKED)
    assert answer.content == expected.text
    assert answer.usage_metadata["input_tokens"] == expected.prompt_tokens
    assert answer.usage_metadata["output_tokens"] == expected.completion_tokens
    assert "".join(piece.content for piece in chat.stream(ASKED)) == expected.text
    assert [one.content for one in chat.batch([ASKED, ASKED])] == [expected.text] * 2
    assert asyncio.run(chat.ainvoke(ASKED)).content == expected.text


def test_a_conversation_with_a_system_message(chat):
    turns = [("system", "Be brief."), ("human", ASKED), ("ai", "Paris."), ("human", "And of Spain?")]
    assert chat.invoke(turns).content


def test_responses(server, expected):
    told = {"base_url": server.v1, "api_key": "none", "model": "tiny", "temperature": 0, "max_tokens": 24}
    chat = langchain_openai.ChatOpenAI(**told, use_responses_api=True, max_retries=0)
    answer = chat.invoke(ASKED)
    assert "".join(part["text"] for part in answer.content) == expected.text
    text = ""
    for piece in chat.stream(ASKED):
        text += "".join(part.get("text", "") for part in piece.content)
    assert text == expected.text


def test_embeddings(server):
    told = {"base_url": server.v1, "api_key": "none", "model": "tiny", "check_embedding_ctx_length": False}
    vectors = langchain_openai.OpenAIEmbeddings(**told).embed_documents(["cat", "dog"])
    assert len(vectors) == 2 and sum(value**2 for value in vectors[0]) == pytest.approx(1, abs=1e-4)


def test_bound_tools_are_called_with_valid_arguments(server):
    from pydantic import BaseModel, Field

    class Weather(BaseModel):
        """Tells the weather."""

        city: str = Field(max_length=5)
        days: int = Field(ge=1, le=7)

    told = {"base_url": server.v1, "api_key": "none", "model": "tiny", "temperature": 0, "max_tokens": 100}
    chat = langchain_openai.ChatOpenAI(**told, max_retries=0)
    bound = chat.bind_tools([Weather], tool_choice="Weather", parallel_tool_calls=False)
    answer = bound.invoke(ASKED)
    [call] = answer.tool_calls
    Weather.model_validate(call["args"])
    assert answer.response_metadata["finish_reason"] == "tool_calls" and not answer.invalid_tool_calls
    whole = None
    for piece in bound.stream(ASKED):
        whole = piece if whole is None else whole + piece
    assert [(one["name"], one["args"]) for one in whole.tool_calls] == [(call["name"], call["args"])]
    parsed = chat.with_structured_output(Weather, method="function_calling").invoke(ASKED)
    assert isinstance(parsed, Weather)
    talk = [("human", ASKED), answer, {"role": "tool", "tool_call_id": call["id"], "content": "21 degrees"}]
    assert chat.bind_tools([Weather]).invoke(talk) is not None


def test_what_is_not_supported_is_told(chat):
    import openai

    with pytest.raises(openai.BadRequestError, match=r"tools\[0\].type"):
        chat.bind(tools=[{"type": "custom", "custom": {"name": "f"}}]).invoke(ASKED)
