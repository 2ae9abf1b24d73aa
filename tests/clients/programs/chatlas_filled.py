import chatlas_batch
from harness import example


def run(base_url, model, prompts):
    fill_gaps = example("fill_gaps")
    texts = chatlas_batch.run(base_url, model, prompts, lambda chat: fill_gaps.fill_gaps(chat.provider._client))
    return [None if text == fill_gaps.FAILED else text for text in texts]
