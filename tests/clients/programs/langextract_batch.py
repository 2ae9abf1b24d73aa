import json

from langextract.providers.openai import OpenAILanguageModel


def run(base_url, model, prompts):
    language_model = OpenAILanguageModel(
        model_id=model,
        api_key="none",
        base_url=base_url,
        batch={"enabled": True, "threshold": 1, "poll_interval": 1},
    )
    outputs = [found[0].output for found in language_model.infer(prompts)]
    return [json.loads(output)["text"] for output in outputs]  # it asks for JSON
