// Vercel's AI SDK: prompts as a JSON list on stdin, a text or null for each on stdout.

const { createOpenAI } = require("@ai-sdk/openai");
const {
  experimental_startBatch: startBatch,
  experimental_getBatchStatus: getBatchStatus,
  experimental_getBatchResults: getBatchResults,
} = require("ai");

async function main() {
  const [baseURL, model] = process.argv.slice(2);
  const prompts = JSON.parse(require("node:fs").readFileSync(0, "utf8"));
  const provider = createOpenAI({ baseURL, apiKey: "none" });
  const requests = prompts.map((prompt, number) => ({ id: String(number), type: "text", model, prompt }));
  const batch = await startBatch({ provider, requests });
  while ((await getBatchStatus({ provider, batch })).status === "pending") {
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
  const texts = prompts.map(() => null);
  for await (const result of getBatchResults({ provider, batch })) {
    if (result.status === "succeeded") texts[Number(result.id)] = result.text;
  }
  process.stdout.write(JSON.stringify(texts));
}

main().catch((error) => {
  process.stderr.write(`${error.stack}\n`);
  process.exit(1);
});
