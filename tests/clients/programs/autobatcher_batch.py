import asyncio

from autobatcher import BatchOpenAI


def run(base_url, model, prompts):
    async def ask():
        async with BatchOpenAI(
            api_key="none",
            base_url=base_url,
            batch_window_seconds=0.5,
            poll_interval_seconds=0.3,
            completion_window="24h",
        ) as client:
            calls = [
                client.chat.completions.create(model=model, messages=[{"role": "user", "content": prompt}])
                for prompt in prompts
            ]
            return await asyncio.gather(*calls, return_exceptions=True)

    answers = asyncio.run(ask())
    return [None if isinstance(answer, Exception) else answer.choices[0].message.content for answer in answers]
