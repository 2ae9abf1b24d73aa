import time

import anthropic


def until_ended(client, batch_id):
    while (batch := client.messages.batches.retrieve(batch_id)).processing_status != "ended":
        time.sleep(0.2)
    return batch


def create(client, model, prompts):
    requests = [
        {
            "custom_id": str(number),
            "params": {"model": model, "max_tokens": 100, "messages": [{"role": "user", "content": prompt}]},
        }
        for number, prompt in enumerate(prompts)
    ]
    return client.messages.batches.create(requests=requests)


def refusal(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError("it was not refused")


def run(base_url, model, prompts):
    """The whole life of a batch: also paged lists, a cancel, and deletes."""
    client = anthropic.Anthropic(base_url=base_url.removesuffix("/v1"), api_key="none")
    batches = client.messages.batches
    created = create(client, model, prompts)
    texts, kinds = {}, []
    batch = until_ended(client, created.id)
    for result in batches.results(batch.id):
        kinds.append(result.result.type)
        if result.result.type == "succeeded":
            texts[result.custom_id] = result.result.message.content[0].text
        else:
            assert result.result.error.error.message, result
    counts = batch.request_counts
    assert (counts.succeeded, counts.errored) == (kinds.count("succeeded"), kinds.count("errored"))

    stopped = create(client, model, ["[[silent]]"] * 3)
    batches.cancel(stopped.id)
    until_ended(client, stopped.id)
    assert {result.result.type for result in batches.results(stopped.id)} == {"canceled"}
    assert {batch.id, stopped.id} <= {each.id for each in batches.list(limit=1)}
    for one in (batch, stopped):
        assert batches.delete(one.id).type == "message_batch_deleted"
        error = refusal(anthropic.NotFoundError, lambda id=one.id: batches.retrieve(id))
        assert error.request_id.startswith("req_")
        assert error.body["error"]["type"] == "not_found_error"
    assert "at least 1 item" in refusal(anthropic.BadRequestError, lambda: create(client, model, [])).message
    return [texts.get(str(number)) for number in range(len(prompts))]
