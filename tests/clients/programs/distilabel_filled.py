import distilabel_batch
from harness import example


def run(base_url, model, prompts):
    fill_gaps = example("fill_gaps")
    texts = distilabel_batch.run(base_url, model, prompts, lambda llm: fill_gaps.fill_gaps(llm._client))
    return [None if text == fill_gaps.FAILED else text for text in texts]
