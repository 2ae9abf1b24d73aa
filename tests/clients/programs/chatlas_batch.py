import os
import tempfile

from chatlas import ChatOpenAICompletions, batch_chat_text


def run(base_url, model, prompts, prepare=lambda chat: None):
    chat = ChatOpenAICompletions(base_url=base_url, api_key="none", model=model)
    prepare(chat)
    with tempfile.TemporaryDirectory() as folder:
        texts = batch_chat_text(chat, prompts, os.path.join(folder, "state.json"))
    return texts + [None] * (len(prompts) - len(texts))
