import openai_sdk
from openai import AzureOpenAI


def run(base_url, model, prompts):
    client = AzureOpenAI(base_url=base_url, api_version="2024-10-21", api_key="none")
    return openai_sdk.run(base_url, model, prompts, client)
