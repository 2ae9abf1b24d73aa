// Anthropic's own Node SDK against a running Everbatch. Started by tests/e2e/test_node.py, which says where both are.

const assert = require("node:assert/strict");
const { test } = require("node:test");
const Anthropic = require("@anthropic-ai/sdk").default;

const { BASE_URL, ENGINE_CONTROL } = process.env;
const client = new Anthropic({ baseURL: new URL(BASE_URL).origin, apiKey: "none", maxRetries: 0 });
const { batches } = client.messages;

const request = (custom_id) => ({
  custom_id,
  params: { model: "fake", max_tokens: 10, user: custom_id, messages: [{ role: "user", content: `say ${custom_id}` }] },
});
const create = (...custom_ids) => batches.create({ requests: custom_ids.map(request) });
const engine = (script) => fetch(ENGINE_CONTROL, { method: "POST", body: JSON.stringify(script) });

async function ended(id) {
  const deadline = Date.now() + 60_000;
  for (;;) {
    const batch = await batches.retrieve(id);
    if (batch.processing_status === "ended") return batch;
    assert.ok(Date.now() < deadline, `${id} is still ${batch.processing_status}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

async function results(id) {
  const found = {};
  for await (const line of await batches.results(id)) found[line.custom_id] = line.result;
  return found;
}

test("from requests to results", async () => {
  await engine({ mode: "status", status: 400, match: "bad" });
  const created = await create("claude-1", "claude-bad");
  assert.match(created.id, /^msgbatch_/);
  assert.equal(created.request_counts.processing, 2);
  const batch = await ended(created.id);
  assert.deepEqual(batch.request_counts, { processing: 0, succeeded: 1, errored: 1, canceled: 0, expired: 0 });
  const found = await results(batch.id);
  assert.equal(found["claude-1"].message.content[0].type, "text");
  assert.equal(found["claude-bad"].error.error.type, "invalid_request_error");
  assert.equal((await batches.delete(batch.id)).type, "message_batch_deleted");
  await assert.rejects(batches.retrieve(batch.id), (error) => {
    assert.ok(error instanceof Anthropic.NotFoundError);
    assert.match(error.requestID, /^req_/);
    return true;
  });
});

test("a batch is canceled, and lists are paged through", async () => {
  await engine({ mode: "hang", match: "slow" });
  const ids = [];
  for (let n = 0; n < 3; n += 1) ids.unshift((await create("slow")).id);
  const listed = [];
  for await (const batch of batches.list({ limit: 2 })) listed.push(batch.id);
  assert.deepEqual(listed.slice(0, 3), ids);
  for (const id of ids) await batches.cancel(id);
  for (const id of ids) {
    assert.equal((await ended(id)).request_counts.canceled, 1);
    assert.deepEqual(await results(id), { slow: { type: "canceled" } });
  }
  await engine({});
});
