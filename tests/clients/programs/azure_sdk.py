import openai_sdk
from openai import AzureOpenAI


def run(base_url, model, prompts):
    client = AzureOpenAI(azure_endpoint=base_url.removesuffix("/v1"), api_version="2024-10-21", api_key="none")
    return openai_sdk.run(base_url, model, prompts, client)
