// OpenAI's own Node SDK against a running Everbatch. Started by tests/e2e/test_node.py, which says where both are.

const assert = require("node:assert/strict");
const { createHash } = require("node:crypto");
const { test } = require("node:test");
const OpenAI = require("openai").default;
const { toFile } = require("openai");

const { BASE_URL, ENGINE_CONTROL, WEBHOOK } = process.env;
const ENDPOINT = "/v1/chat/completions";
const WINDOW = "24h";
const TERMINAL = ["completed", "failed", "expired", "cancelled"];

let attempts = 0;
const client = new OpenAI({
  baseURL: BASE_URL,
  apiKey: "none",
  fetch: (...call) => {
    attempts += 1;
    return fetch(...call);
  },
});

const request = (custom_id) => ({
  custom_id,
  method: "POST",
  url: ENDPOINT,
  body: { model: "fake", user: custom_id, messages: [{ role: "user", content: `say ${custom_id}` }] },
});
const jsonl = (...custom_ids) => custom_ids.map((id) => JSON.stringify(request(id)) + "\n").join("");
const upload = async (content) =>
  client.files.create({ file: await toFile(Buffer.from(content), "in.jsonl"), purpose: "batch" });
const create = (input_file_id, more = {}) =>
  client.batches.create({ input_file_id, endpoint: ENDPOINT, completion_window: WINDOW, ...more });
const engine = (script) => fetch(ENGINE_CONTROL, { method: "POST", body: JSON.stringify(script) });
const idsIn = (content) => content.split("\n").slice(0, -1).map((line) => JSON.parse(line).custom_id);

async function until(batchId, statuses) {
  const deadline = Date.now() + 60_000;
  for (;;) {
    const batch = await client.batches.retrieve(batchId);
    if (statuses.includes(batch.status)) return batch;
    assert.ok(Date.now() < deadline, `${batchId} is still ${batch.status}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** The error of a call that must fail, once it is sure that the SDK did not try it again. */
async function refusal(call, kind, status) {
  const before = attempts;
  const error = await call().then(() => assert.fail("it was not refused"), (error) => error);
  assert.ok(error instanceof kind, `${error}`);
  assert.equal(error.status, status);
  assert.equal(error.type, "invalid_request_error");
  assert.match(error.requestID, /^req_/);
  assert.equal(attempts, before + 1);
  return error;
}

test("from a file to its results", async () => {
  await engine({ mode: "status", status: 400, match: "bad" });
  const file = await upload(jsonl("node-1", "node-bad", "node-2"));
  assert.equal(file.object, "file");
  assert.deepEqual(await client.files.retrieve(file.id), file);
  assert.equal((await client.files.waitForProcessing(file.id)).status, "processed");

  const created = await create(file.id, { metadata: { client: "node" } });
  assert.match(created.id, /^batch_/);
  const batch = await until(created.id, TERMINAL);
  assert.equal(batch.status, "completed");
  assert.deepEqual(batch.request_counts, { total: 3, completed: 2, failed: 1 });
  assert.deepEqual(batch.metadata, { client: "node" });
  assert.ok(batch.usage.total_tokens > 0);
  assert.ok(batch.created_at <= batch.in_progress_at && batch.in_progress_at <= batch.completed_at);

  const output = await client.files.content(batch.output_file_id);
  assert.equal(output.headers.get("content-type"), "application/octet-stream");
  const lines = (await output.text()).split("\n").slice(0, -1).map((line) => JSON.parse(line));
  assert.deepEqual(lines.map((line) => line.custom_id), ["node-1", "node-2"]);
  assert.equal(lines[0].response.status_code, 200);
  assert.ok(lines[0].response.body.choices[0].message.content);
  const errors = await (await client.files.content(batch.error_file_id)).text();
  const [refused] = errors.trim().split("\n").map((line) => JSON.parse(line));
  assert.deepEqual([refused.custom_id, refused.response.status_code], ["node-bad", 400]);

  assert.equal((await client.files.delete(batch.output_file_id)).deleted, true);
  await refusal(() => client.files.content(batch.output_file_id), OpenAI.NotFoundError, 404);
});

test("lists are paged through", async () => {
  await engine({});
  const file = await upload(jsonl("page-1"));
  const ids = [];
  for (let n = 0; n < 3; n += 1) ids.unshift((await create(file.id)).id);
  const newest = [];
  for await (const batch of client.batches.list({ limit: 2 })) {
    newest.push(batch.id);
    if (newest.length === 3) break;
  }
  assert.deepEqual(newest, ids);
  const page = await client.batches.list({ limit: 2 });
  assert.equal(page.hasNextPage(), true);
  assert.equal((await page.getNextPage()).data[0].id, ids[2]);
  const files = [];
  for await (const one of client.files.list({ purpose: "batch", limit: 1, order: "asc" })) files.push(one.id);
  assert.ok(files.includes(file.id));
  assert.equal(new Set(files).size, files.length);
  for (const id of ids) await until(id, TERMINAL);
});

test("a batch is cancelled", async () => {
  await engine({ mode: "hang", match: "slow" });
  const { id } = await create((await upload(jsonl("quick", "slow"))).id);
  const deadline = Date.now() + 30_000;
  while ((await client.batches.retrieve(id)).request_counts.completed < 1) assert.ok(Date.now() < deadline);
  assert.equal((await client.batches.cancel(id)).status, "cancelling");
  const batch = await until(id, TERMINAL);
  assert.equal(batch.status, "cancelled");
  assert.deepEqual(idsIn(await (await client.files.content(batch.output_file_id)).text()), ["quick"]);
  assert.deepEqual(idsIn(await (await client.files.content(batch.error_file_id)).text()), ["slow"]);
  assert.equal((await client.batches.cancel(id)).status, "cancelled");
  await engine({});
});

test("a key makes one batch", async () => {
  const headers = { "Idempotency-Key": "node-night-7" };
  const file = await upload(jsonl("once"));
  const body = { input_file_id: file.id, endpoint: ENDPOINT, completion_window: WINDOW };
  const first = await client.batches.create(body, { headers });
  assert.equal((await client.batches.create(body, { headers })).id, first.id);
  const other = { ...body, metadata: { a: "b" } };
  await refusal(() => client.batches.create(other, { headers }), OpenAI.ConflictError, 409);
  await until(first.id, TERMINAL);
  const late = await refusal(() => client.batches.cancel(first.id), OpenAI.ConflictError, 409);
  assert.match(late.message, /Cannot cancel a batch with status 'completed'/);
});

test("errors have the SDK's shape", async () => {
  const { BadRequestError, NotFoundError } = OpenAI;
  const none = await refusal(() => client.batches.retrieve("batch_none"), NotFoundError, 404);
  assert.match(none.message, /No batch found/);
  assert.equal((await refusal(() => client.files.retrieve("file-none"), NotFoundError, 404)).param, "id");

  const endpoint = await refusal(() => create("file-1", { endpoint: "/v1/nonsense" }), BadRequestError, 400);
  assert.deepEqual([endpoint.code, endpoint.param], ["invalid_value", "endpoint"]);
  const field = await refusal(() => create(undefined), BadRequestError, 400);
  assert.deepEqual([field.code, field.param], ["missing_required_parameter", "input_file_id"]);
  const type = await refusal(() => create("file-1", { metadata: { tags: ["a"] } }), BadRequestError, 400);
  assert.deepEqual([type.code, type.param], ["invalid_type", "metadata.tags"]);
  const purpose = () => client.files.create({ file: new File(["{}"], "a"), purpose: "nonsense" });
  assert.equal((await refusal(purpose, BadRequestError, 400)).param, "purpose");
  await refusal(() => client.batches.list({ limit: 101 }), BadRequestError, 400);

  const failed = await until((await create("file-none")).id, TERMINAL);
  assert.equal(failed.status, "failed");
  assert.equal(failed.errors.data[0].param, "file_id");
});

test("a file arrives in parts", async () => {
  const content = Buffer.from(jsonl(...Array.from({ length: 50 }, (_, n) => `part-${n}`)));
  const upload = await client.uploads.create({
    bytes: content.length,
    filename: "parts.jsonl",
    mime_type: "application/jsonl",
    purpose: "batch",
  });
  assert.equal(upload.status, "pending");
  const pieces = [content.subarray(0, 1000), content.subarray(1000)];
  const parts = await Promise.all(
    pieces.map(async (piece) => client.uploads.parts.create(upload.id, { data: await toFile(piece, "part") })),
  );
  const md5 = createHash("md5").update(content).digest("hex");
  const part_ids = parts.map((part) => part.id);
  const reversed = [...part_ids].reverse();
  await refusal(() => client.uploads.complete(upload.id, { part_ids: reversed, md5 }), OpenAI.BadRequestError, 400);
  const { status, file } = await client.uploads.complete(upload.id, { part_ids, md5 });
  assert.deepEqual([status, file.bytes], ["completed", content.length]);
  assert.equal(await (await client.files.content(file.id)).text(), content.toString());
  const batch = await until((await create(file.id)).id, TERMINAL);
  assert.deepEqual(batch.request_counts, { total: 50, completed: 50, failed: 0 });
});

test("a webhook is unwrapped", async () => {
  const { body, headers, secret } = JSON.parse(WEBHOOK);
  const event = await client.webhooks.unwrap(body, headers, secret);
  assert.deepEqual([event.type, event.data.id], ["batch.completed", "batch_1"]);
  await assert.rejects(client.webhooks.unwrap(body + " ", headers, secret), OpenAI.InvalidWebhookSignatureError);
});
