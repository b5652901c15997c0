"""The routes that generate nothing: tokens, patches and scores."""

import base64
import math
from typing import Any

from starlette.requests import Request

from bltkit.data.template import ChatTemplate
from bltkit.serve.byte_text import UNLIKELY
from bltkit.serve.delivery import failure
from bltkit.serve.errors import ApiError
from bltkit.serve.messages import Failed, ModelInfo, Prompted
from bltkit.serve.protocol import DetokenizeRequest, PatchesRequest, ScoreRequest, TokenizeRequest
from bltkit.serve.server import Server
from bltkit.serve.tokens import BOS_NAME, EOS_NAME, NAMES, ids_of, jinja_template, text_of_ids
from bltkit.serve.work import PromptIds, check_choices, sized_prompts
from bltkit.vocab import BOS, EOS, OFFSET, VOCAB_SIZE, decode


async def tokenized(server: Server, body: TokenizeRequest, request: Request) -> dict[str, Any]:
    """The ids of a text: its bytes + 4. The name of BOS or EOS, as the whole text, is that id."""
    ids = ids_of(body.prompt)
    if body.add_special_tokens is not False and body.prompt not in NAMES:
        ids = [BOS, *ids]
    return {"tokens": ids, "count": len(ids), "max_model_len": server.info.context}


async def detokenized(server: Server, body: DetokenizeRequest, request: Request) -> dict[str, Any]:
    """The text of ids, and its bytes as base64; special ids have none, unless one stands alone."""
    return {"prompt": text_of_ids(body.tokens), "bytes": base64.b64encode(decode(body.tokens)).decode("ascii")}


def tokenizer_info(info: ModelInfo, template: ChatTemplate | None) -> dict[str, Any]:
    """What `/tokenizer_info` answers."""
    return {
        "tokenizer_class": "bytes",
        "bos_token": BOS_NAME,
        "eos_token": EOS_NAME,
        "pad_token": None,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "byte_offset": OFFSET,
        "vocab_size": VOCAB_SIZE,
        "model_max_length": info.context,
        "chat_template": None if template is None else jinja_template(template),
    }


async def patches(server: Server, body: PatchesRequest, request: Request) -> dict[str, Any]:
    """The patches of a text, as `blt patch --json` tells them."""
    (prompt,) = sized_prompts([body.input], 0, server.info, "input")
    server.check_room(1, prompt.size)
    try:
        return (await server.engine.patch(prompt.data)).to_json()
    except RuntimeError as error:
        server.check_ready()
        raise ApiError(500, str(error), code="internal_error", kind="server_error") from None


async def score(server: Server, body: ScoreRequest, request: Request) -> dict[str, Any]:
    """Log-probabilities of texts, every byte given BOS and all bytes before it; nothing is generated."""
    check_choices(len(body.input), server.info)
    prompts = sized_prompts(body.input, 0, server.info, "input")
    size = sum(prompt.size for prompt in prompts)
    server.check_room(len(prompts), size)
    streams = [server.engine.submit(prompt.ids, (), 0, server.seconds) for prompt in prompts]
    data = []
    try:
        for index, (prompt, stream) in enumerate(zip(prompts, streams, strict=True)):
            async for event in stream:
                if isinstance(event, Failed):
                    server.check_ready()
                    raise failure(event)
                assert isinstance(event, Prompted)
                data.append(_score(index, prompt, event, bool(body.logprobs)))
    finally:
        for stream in streams:
            stream.cancel()
    usage = {"prompt_tokens": size, "completion_tokens": 0, "total_tokens": size, "unit": "byte"}
    return {"object": "list", "model": server.info.name, "data": data, "usage": usage}


def _score(index: int, prompt: PromptIds, event: Prompted, logprobs: bool) -> dict[str, Any]:
    values = [max(value, UNLIKELY) for value in event.logprobs]
    total = math.fsum(values)
    size = len(prompt.data)
    return {
        "index": index,
        "object": "score",
        "num_bytes": size,
        "logprob": total,
        "bits_per_byte": -total / math.log(2) / size if size else None,
        **({"logprobs": values} if logprobs else {}),
    }
