import time

from instructor.batch import BatchProcessor
from pydantic import BaseModel


class Answer(BaseModel):
    text: str


def run(base_url, model, prompts):
    processor = BatchProcessor(f"openai/{model}", Answer)
    buffer = processor.create_batch_from_messages([[{"role": "user", "content": prompt}] for prompt in prompts])
    batch_id = processor.submit_batch(buffer)
    while processor.get_batch_status(batch_id)["status"] not in ("completed", "failed", "expired", "cancelled"):
        time.sleep(0.2)
    texts = {}
    for result in processor.get_results(batch_id):
        texts[result.custom_id] = result.result.text if result.success else None
    return [texts.get(f"request-{number}") for number in range(len(prompts))]
