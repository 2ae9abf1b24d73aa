import asyncio
import tempfile

from langasync import BatchStatus, LangasyncSettings, batch_chain
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI

WAITING = (BatchStatus.PENDING, BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS)


def run(base_url, model, prompts):
    async def ask(folder):
        settings = LangasyncSettings(openai_base_url=base_url, openai_api_key="none", base_storage_path=folder)
        chain = ChatPromptTemplate.from_messages([("user", "{prompt}")]) | ChatOpenAI(
            model=model, base_url=base_url, api_key="none"
        )
        job = await batch_chain(chain, settings=settings).submit([{"prompt": prompt} for prompt in prompts])
        for _ in range(200):
            await asyncio.sleep(0.3)
            if (found := await job.get_results()).status_info.status not in WAITING:
                return found.results
        raise TimeoutError

    with tempfile.TemporaryDirectory() as folder:
        results = asyncio.run(ask(folder))
    return [None if isinstance(item, Exception) else item.content for item in results]
