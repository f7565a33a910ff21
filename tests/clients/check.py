"""Real clients, unchanged, against a served ranker: each makes a ranking, and all get the same one.

usage: check.py ADDRESS CLIENT [CLIENT ...], with an API key `secret`
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from collections.abc import Callable
from typing import Any

KEY = "secret"
QUERY = "how does bread rise?"
DOCUMENTS = ["Cats hunt at night.", "Yeast makes bread rise.", "The moon is far away.", "Flour comes from wheat."]
Order = list[int]
CHECKS: dict[str, Callable[[str], Order]] = {}


def check(function: Callable[[str], Order]) -> Callable[[str], Order]:
    """Make a check known by its name."""
    CHECKS[function.__name__] = function
    return function


def plain(address: str, path: str, body: dict[str, Any]) -> Any:
    """What the service answers to a body, without any client."""
    request = urllib.request.Request(
        f"{address}{path}",
        json.dumps(body).encode(),
        {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def places(documents: list[str]) -> Order:
    """The documents' places."""
    return [DOCUMENTS.index(document) for document in documents]


@check
def cohere_v2(address: str) -> Order:
    import cohere

    client = cohere.ClientV2(api_key=KEY, base_url=address)
    return [one.index for one in client.rerank(model="any", query=QUERY, documents=DOCUMENTS).results]


@check
def cohere_v1(address: str) -> Order:
    import cohere

    client = cohere.Client(api_key=KEY, base_url=address)
    found = client.rerank(
        model="any", query=QUERY, documents=[{"text": text} for text in DOCUMENTS], return_documents=True
    )
    return places([one.document.text for one in found.results])


@check
def cohere_error(address: str) -> Order:
    import cohere

    said = ""
    try:
        cohere.ClientV2(api_key=KEY, base_url=address).rerank(model="any", query=QUERY, documents=[])
    except cohere.BadRequestError as error:
        said = str(error.body)
    assert "an empty list" in said, f"found {said!r} for a request without documents"
    return cohere_v2(address)


@check
def voyage(address: str) -> Order:
    import voyageai

    client = voyageai.Client(api_key=KEY, base_url=f"{address}/v1")
    return [one.index for one in client.rerank(QUERY, DOCUMENTS, model="rerank-2").results]


def _litellm(provider: str, address: str, **more: Any) -> Order:
    import litellm

    found = litellm.rerank(
        model=f"{provider}/any", query=QUERY, documents=DOCUMENTS, api_base=address, api_key=KEY, top_n=4, **more
    )
    return [one["index"] for one in found.results]


@check
def litellm_cohere(address: str) -> Order:
    return _litellm("cohere", address)


@check
def litellm_jina(address: str) -> Order:
    return _litellm("jina_ai", address)


@check
def litellm_vllm(address: str) -> Order:
    return _litellm("hosted_vllm", address)


@check
def litellm_tei(address: str) -> Order:
    return _litellm("huggingface", address)


@check
def litellm_infinity(address: str) -> Order:
    return _litellm("infinity", f"{address}/infinity")


@check
def langchain(address: str) -> Order:
    import cohere
    from langchain_cohere import CohereRerank
    from langchain_core.documents import Document

    client = cohere.ClientV2(api_key=KEY, base_url=address)
    reranker = CohereRerank(client=client, model="any", top_n=4)
    found = reranker.compress_documents([Document(page_content=text) for text in DOCUMENTS], QUERY)
    return places([one.page_content for one in found])


def _llama_index(processor: Any) -> Order:
    from llama_index.core.schema import NodeWithScore, TextNode

    nodes = [NodeWithScore(node=TextNode(text=text), score=0.0) for text in DOCUMENTS]
    return places([one.node.get_content() for one in processor.postprocess_nodes(nodes, query_str=QUERY)])


@check
def llama_index_cohere(address: str) -> Order:
    from llama_index.postprocessor.cohere_rerank import CohereRerank

    return _llama_index(CohereRerank(api_key=KEY, base_url=address, model="any", top_n=4))


@check
def llama_index_jina(address: str) -> Order:
    from llama_index.postprocessor.jinaai_rerank import JinaRerank

    return _llama_index(JinaRerank(api_key=KEY, base_url=f"{address}/v1", model="any", top_n=4))


@check
def llama_index_tei(address: str) -> Order:
    from llama_index.postprocessor.tei_rerank import TextEmbeddingInference

    return _llama_index(TextEmbeddingInference(base_url=address, auth_token=f"Bearer {KEY}", model_name="any", top_n=4))


@check
def infinity(address: str) -> Order:
    from infinity_client import AuthenticatedClient
    from infinity_client.api.default import rerank
    from infinity_client.models import RerankInput

    client = AuthenticatedClient(base_url=f"{address}/infinity", token=KEY, timeout=60)
    found = rerank.sync(client=client, body=RerankInput(query=QUERY, documents=DOCUMENTS, return_documents=True))
    return [one.index for one in found.results]


def main() -> int:
    """Run the named checks; 1 where one of them fails."""
    address, *names = sys.argv[1:]
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # no request elsewhere
    wanted = [one["index"] for one in plain(address, "/rerank", {"query": QUERY, "documents": DOCUMENTS})["results"]]
    failed = 0
    for name in names or CHECKS:
        try:
            found = CHECKS[name](address)
            said = "ok" if found == wanted else f"found {found}, wanted {wanted}"
        except Exception as error:  # whatever a client raises is a failure of the service's
            said = f"{type(error).__name__}: {error}"
        failed += said != "ok"
        print(f"{name}: {said}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
