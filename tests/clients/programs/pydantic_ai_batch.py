import asyncio
from datetime import timedelta

from pydantic_ai import Agent
from pydantic_ai.capabilities import BatchModelRequests
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

MODELS = {"chat": OpenAIChatModel, "responses": OpenAIResponsesModel}


def run(base_url, model, prompts, kind="responses"):
    provider = OpenAIProvider(base_url=base_url, api_key="none")
    batching = BatchModelRequests(
        max_requests=len(prompts),
        max_wait=timedelta(seconds=1),
        max_resubmissions=0,
        poll_interval=timedelta(seconds=0.5),
    )
    agent = Agent(MODELS[kind](model, provider=provider), capabilities=[batching])

    async def ask():
        return await asyncio.gather(*(agent.run(prompt) for prompt in prompts), return_exceptions=True)

    results = asyncio.run(ask())
    return [None if isinstance(result, BaseException) else result.output for result in results]
