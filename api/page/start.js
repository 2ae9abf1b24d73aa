// Uploading a file and starting a batch of it.

import { get, post, upload } from "./api.js";
import { $, el } from "./dom.js";

const HEAD_BYTES = 65_536;
let key = "";

async function fillChoices() {
  const fields = (await get("openapi.json")).components.schemas.CreateBatch.properties;
  // One supported value is a constant, several are an enumeration.
  const choices = (field) => (field.enum ?? [field.const]).map((value) => el("option", { value }, value));
  $("endpoint").replaceChildren(...choices(fields.endpoint));
  $("window").replaceChildren(...choices(fields.completion_window));
  if ([...$("window").options].some((option) => option.value === "24h")) $("window").value = "24h";
}

// The first request says the endpoint.
async function lookAtFile() {
  const file = $("file").files[0];
  key = crypto.randomUUID?.() ?? String(Math.random());
  if (!file) return;
  $("file-hint").textContent = `${file.name}, ${(file.size / 1e6).toFixed(2)} MB`;
  if (!$("name").value) $("name").value = file.name.replace(/\.[^.]*$/, "");
  try {
    const url = JSON.parse((await file.slice(0, HEAD_BYTES).text()).trim().split("\n")[0]).url;
    if ([...$("endpoint").options].some((option) => option.value === url)) $("endpoint").value = url;
  } catch {
    // Validation will say what is wrong with it.
  }
}

async function start(event) {
  event.preventDefault();
  const button = $("start"), wrong = $("new-wrong"), sent = $("sent");
  button.disabled = true;
  wrong.hidden = true;
  sent.hidden = false;
  sent.value = 0;
  try {
    const file = await upload($("file").files[0], (part) => { sent.value = part; });
    const name = $("name").value.trim();
    const body = { input_file_id: file.id, endpoint: $("endpoint").value, completion_window: $("window").value, ...(name ? { metadata: { name } } : {}) };
    const batch = await post("v1/batches", body, { "Idempotency-Key": `page-${key}-${file.id}` });
    $("new-dialog").close();
    location.hash = `#/batches/${batch.id}`;
  } catch (error) {
    wrong.textContent = error.message;
    wrong.hidden = false;
  } finally {
    button.disabled = false;
    sent.hidden = true;
  }
}

export function prepare() {
  const dialog = $("new-dialog");
  $("new").addEventListener("click", async () => {
    dialog.querySelector("form").reset();
    $("new-wrong").hidden = true;
    dialog.showModal();
    try {
      await fillChoices();
    } catch (error) {
      $("new-wrong").textContent = error.message;
      $("new-wrong").hidden = false;
    }
  });
  $("new-close").addEventListener("click", () => dialog.close());
  $("file").addEventListener("change", lookAtFile);
  dialog.querySelector("form").addEventListener("submit", start);
}
