"""Clients that others wrote, each in an environment of its own: openai (PyPI and npm), langchain-openai, litellm.

They do not install beside this project's pins. What they print is compared with the bytes of the same model in this
process.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bltkit.data.template import ChatTemplate
from bltkit.vocab import OFFSET
from tests.serve_client import ASCII_ONLY, Library, Served, raw, saved_model, serve

pytestmark = pytest.mark.slow

SIZE = 24
BIAS = ASCII_ONLY | {str(OFFSET + 3): -100}
"""Plain text that is as long as may be: neither EOS nor the mark that ends a turn."""
MESSAGES = [{"role": "developer", "content": "Be short."}, {"role": "user", "content": "Hi, größer"}]
INSTALL_SECONDS = 600
RUN_SECONDS = 300

OPENAI = """
import asyncio, base64, json, sys
import openai
url, model, asked = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
bias, messages = asked["bias"], asked["messages"]
client = openai.OpenAI(base_url=url + "/v1", api_key="any", max_retries=0, timeout=120)
text = dict(model=model, prompt="The sky", max_tokens=asked["size"], seed=3, logit_bias=bias)
chat = dict(model=model, messages=messages, max_completion_tokens=asked["size"], seed=3, logit_bias=bias)
out = {"models": [entry.id for entry in client.models.list()]}
answer = client.completions.create(**text)
out["completion"] = answer.choices[0].text
out["usage"] = answer.usage.completion_tokens
usage = {"include_usage": True}
events = list(client.completions.create(**text, stream=True, stream_options=usage))
out["stream"] = "".join(event.choices[0].text for event in events if event.choices)
out["stream_usage"] = events[-1].usage.completion_tokens
answer = client.completions.create(**text, extra_body={"strategy": "speculative", "bytes": True})
out["extra"] = base64.b64decode(answer.choices[0].bytes).decode()
answer = client.completions.create(**(text | {"n": 3}), logprobs=2)
out["several"] = [choice.text for choice in answer.choices]
out["tokens"] = "".join(answer.choices[0].logprobs.tokens)
answer = client.chat.completions.create(**chat)
out["chat"] = answer.choices[0].message.content
out["role"] = answer.choices[0].message.role
answer = client.chat.completions.create(**chat, logprobs=True, top_logprobs=2)
out["chat_bytes"] = [entry.bytes[0] for entry in answer.choices[0].logprobs.content]
events = list(client.chat.completions.create(**chat, stream=True, stream_options=usage))
out["chat_stream"] = "".join(event.choices[0].delta.content or "" for event in events if event.choices)
with client.chat.completions.stream(**chat) as stream:
    stream.until_done()
    out["chat_helper"] = stream.current_completion_snapshot.choices[0].message.content

async def asynchronous():
    async with openai.AsyncOpenAI(base_url=url + "/v1", api_key="any", max_retries=0) as client:
        answers = await asyncio.gather(*(client.completions.create(**(text | {"seed": seed})) for seed in range(5)))
        pieces = [event async for event in await client.chat.completions.create(**chat, stream=True)]
        return [answer.choices[0].text for answer in answers], "".join(
            event.choices[0].delta.content or "" for event in pieces if event.choices)

out["async"], out["async_stream"] = asyncio.run(asynchronous())
try:
    client.completions.create(model=model, prompt="x", temperature=-1)
except openai.BadRequestError as error:
    out["error"] = [error.status_code, error.param, error.body["message"]]
try:
    client.completions.create(model="another", prompt="x")
except openai.NotFoundError as error:
    out["missing"] = error.status_code
print(json.dumps(out))
"""

LANGCHAIN = """
import json, sys
from langchain_openai import ChatOpenAI, OpenAI
url, model, asked = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
shared = dict(base_url=url + "/v1", api_key="any", model=model, seed=3, max_tokens=asked["size"], max_retries=0,
              temperature=1.0, logit_bias=asked["bias"])
llm, chat = OpenAI(**shared), ChatOpenAI(**shared)
print(json.dumps({
    "completion": llm.invoke("The sky"),
    "stream": "".join(llm.stream("The sky")),
    "several": llm.batch(["The sky", "x"]),
    "chat": chat.invoke(asked["messages"]).content,
    "chat_stream": "".join(piece.content for piece in chat.stream(asked["messages"])),
}))
"""

LITELLM = """
import json, sys
import litellm
litellm.telemetry = False
url, model, asked = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
shared = dict(api_base=url + "/v1", api_key="any", max_tokens=asked["size"], seed=3, logit_bias=asked["bias"],
              num_retries=0)
text = dict(model="text-completion-openai/" + model, prompt="The sky")
chat = dict(model="openai/" + model, messages=asked["messages"])
print(json.dumps({
    "completion": litellm.text_completion(**text, **shared).choices[0].text,
    "stream": "".join(e.choices[0].text or "" for e in litellm.text_completion(**text, **shared, stream=True)),
    "chat": litellm.completion(**chat, **shared).choices[0].message.content,
    "chat_stream": "".join(
        event.choices[0].delta.content or "" for event in litellm.completion(**chat, **shared, stream=True)),
}))
"""

NODE = """
import OpenAI from "openai";
const [url, model, json] = process.argv.slice(2);
const asked = JSON.parse(json);
const client = new OpenAI({ baseURL: url + "/v1", apiKey: "any", maxRetries: 0 });
const shared = { model, seed: 3, logit_bias: asked.bias };
const text = { ...shared, prompt: "The sky", max_tokens: asked.size };
const chat = { ...shared, messages: asked.messages, max_completion_tokens: asked.size };
const out = {};
out.completion = (await client.completions.create(text)).choices[0].text;
out.stream = "";
for await (const event of await client.completions.create({ ...text, stream: true })) {
  out.stream += event.choices[0]?.text ?? "";
}
out.chat = (await client.chat.completions.create(chat)).choices[0].message.content;
out.chat_stream = "";
for await (const event of await client.chat.completions.create({ ...chat, stream: true })) {
  out.chat_stream += event.choices[0]?.delta?.content ?? "";
}
try {
  await client.completions.create({ model, prompt: "x", temperature: -1 });
} catch (error) {
  out.error = [error.status, error.param];
}
console.log(JSON.stringify(out));
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_model(tmp_path_factory.mktemp("model") / "random", chat=True)


@pytest.fixture(scope="module")
def server(directory: Path) -> Iterator[Served]:
    with serve(directory, "--dtype", "float64") as served:
        yield served
        assert "Traceback" not in served.server.messages, served.server.messages


@pytest.fixture(scope="module")
def expected(directory: Path, server: Served) -> dict[str, str]:
    """What all clients must print. The conversation is rendered here, by the template."""
    rendered = ChatTemplate().render(MESSAGES, add_generation_prompt=True).data
    asked: dict[str, Any] = {"max_tokens": SIZE, "seed": 3, "logit_bias": BIAS}
    prompts = {"completion": "The sky", "chat": [byte + OFFSET for byte in rendered]}
    texts = {name: server.data(prompt, **asked).decode() for name, prompt in prompts.items()}
    assert all(len(text) == SIZE for text in texts.values())
    # Without a bias these are the library's.
    free = raw(server.complete("The sky", max_tokens=SIZE, seed=3)["choices"][0])
    with Library(directory) as lm:
        assert free == lm.generate("The sky", max_bytes=SIZE, seed=3, temperature=1.0).data
    return texts


def run(command: list[str], where: Path, seconds: float = RUN_SECONDS, **env: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "OPENAI_API_KEY")}
    done = subprocess.run(
        command,
        cwd=where,
        env=environment | env,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with the three Python clients."""
    where = tmp_path_factory.mktemp("clients")
    run([sys.executable, "-m", "venv", str(where / "env")], where, INSTALL_SECONDS)
    interpreter = where / "env" / "bin" / "python"
    install = [str(interpreter), "-m", "pip", "install", "-q", "openai", "langchain-openai", "litellm"]
    run(install, where, INSTALL_SECONDS, PIP_CONSTRAINT="")
    return interpreter


def printed(interpreter: Path, script: str, server: Served) -> dict[str, Any]:
    asked = json.dumps({"bias": BIAS, "messages": MESSAGES, "size": SIZE})
    command = [str(interpreter), "-c", script, server.url, server.model, asked]
    quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LANGSMITH_TRACING": "false"}
    return dict(json.loads(run(command, interpreter.parent, **quiet).splitlines()[-1]))


def test_openai(python: Path, server: Served, expected: dict[str, str]) -> None:
    out = printed(python, OPENAI, server)
    assert out["models"] == [server.model]
    for name in ("completion", "stream", "extra", "tokens"):
        assert out[name] == expected["completion"], name
    for name in ("chat", "chat_stream", "chat_helper", "async_stream"):
        assert out[name] == expected["chat"], name
    assert bytes(out["chat_bytes"]).decode() == expected["chat"]
    assert out["role"] == "assistant"
    assert out["usage"] == out["stream_usage"] == SIZE
    assert out["several"][0] == expected["completion"] and len(set(out["several"])) == 3
    assert out["async"][3] == expected["completion"] and len(set(out["async"])) == 5
    assert out["async"][4] == out["several"][1]
    assert out["error"][:2] == [400, "temperature"] and "temperature" in out["error"][2]
    assert out["missing"] == 404


@pytest.mark.parametrize("script", [LANGCHAIN, LITELLM], ids=["langchain-openai", "litellm"])
def test_frameworks(python: Path, server: Served, expected: dict[str, str], script: str) -> None:
    out = printed(python, script, server)
    assert out["completion"] == out["stream"] == expected["completion"]
    assert out["chat"] == out["chat_stream"] == expected["chat"]
    assert out.get("several", [expected["completion"]])[0] == expected["completion"]


@pytest.mark.skipif(shutil.which("npm") is None, reason="needs node and npm")
def test_openai_of_npm(tmp_path: Path, server: Served, expected: dict[str, str]) -> None:
    (tmp_path / "package.json").write_text('{"private": true, "type": "module"}')
    (tmp_path / "client.mjs").write_text(NODE)
    run(["npm", "install", "openai", "--no-audit", "--no-fund"], tmp_path, INSTALL_SECONDS)
    asked = json.dumps({"bias": BIAS, "messages": MESSAGES, "size": SIZE})
    out = json.loads(run(["node", "client.mjs", server.url, server.model, asked], tmp_path).splitlines()[-1])
    assert out["completion"] == out["stream"] == expected["completion"]
    assert out["chat"] == out["chat_stream"] == expected["chat"]
    assert out["error"] == [400, "temperature"]
