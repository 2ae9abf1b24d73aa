from distilabel.models import OpenAILLM


def run(base_url, model, prompts, prepare=lambda llm: None):
    llm = OpenAILLM(
        model=model,
        base_url=base_url,
        api_key="none",
        use_offline_batch_generation=True,
        offline_batch_generation_block_until_done=1,
    )
    llm.load()
    prepare(llm)
    outputs = llm.generate_outputs(inputs=[[{"role": "user", "content": prompt}] for prompt in prompts])
    texts = [output["generations"][0] for output in outputs]
    return texts + [None] * (len(prompts) - len(texts))
