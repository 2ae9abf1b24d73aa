// The public API. A key is kept in this tab's session storage and sent as a header, never in a URL.

import { $ } from "./dom.js";

const KEY = "everbatch-key";

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const hasKey = () => sessionStorage.getItem(KEY) !== null;

export function forgetKey() {
  sessionStorage.removeItem(KEY);
  location.reload();
}

function headers(more = {}) {
  const key = sessionStorage.getItem(KEY);
  return key === null ? more : { Authorization: `Bearer ${key}`, ...more };
}

let asking = null;

// Ask for a key, once for all calls that wait for one.
function askForKey(wrong) {
  asking ??= new Promise((resolve) => {
    const dialog = $("key-dialog");
    $("key-wrong").hidden = !wrong;
    $("key-wrong").textContent = wrong;
    $("key").value = "";
    dialog.addEventListener("close", () => {
      const key = $("key").value.trim();
      $("key").value = "";
      if (key) sessionStorage.setItem(KEY, key);
      $("forget").hidden = !hasKey();
      asking = null;
      resolve();
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

function messageOf(text, status) {
  try {
    return JSON.parse(text).error.message;
  } catch {
    return `The server responded with status ${status}.`;
  }
}

// The response of a call that succeeded. Throws an ApiError, whose status is 0 where nobody answers.
export async function call(path, { method = "GET", body, more } = {}) {
  for (;;) {
    const given = headers(body === undefined ? more : { "Content-Type": "application/json", ...more });
    let response;
    try {
      response = await fetch(path, { method, headers: given, body: body === undefined ? undefined : JSON.stringify(body), cache: "no-store" });
    } catch {
      throw new ApiError(0, "The server does not answer.");
    }
    if (response.ok) return response;
    const message = messageOf(await response.text(), response.status);
    if (response.status !== 401) throw new ApiError(response.status, message);
    await askForKey(given.Authorization ? message : "");
  }
}

export const get = async (path) => (await call(path)).json();
export const post = async (path, body = {}, more = {}) => (await call(path, { method: "POST", body, more })).json();

// Upload an input file, and say how much of it is sent.
export function upload(file, onProgress) {
  return new Promise((resolve, reject) => {
    const form = new FormData();
    form.append("purpose", "batch");
    form.append("file", file);
    const request = new XMLHttpRequest();
    request.open("POST", "v1/files");
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => event.lengthComputable && onProgress(event.loaded / event.total);
    request.onerror = () => reject(new ApiError(0, "The server does not answer."));
    request.onload = () => {
      if (request.status === 200) resolve(JSON.parse(request.responseText));
      else reject(new ApiError(request.status, messageOf(request.responseText, request.status)));
    };
    request.send(form);
  });
}

function save(url, name) {
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
}

function saveBlob(parts, name) {
  const url = URL.createObjectURL(new Blob(parts, { type: "application/jsonl" }));
  save(url, name);
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

// Without a key the browser streams the file to disk; with one the page has to fetch it, for the header.
export async function download(fileId, name) {
  const path = `v1/files/${fileId}/content`;
  if (hasKey()) saveBlob([await (await call(path)).blob()], name);
  else save(path, name);
}

// What is committed of a batch by now.
export async function downloadSoFar(batchId, name) {
  const parts = [];
  let after = "0";
  for (;;) {
    const page = await call(`v1/batches/${batchId}/results?after=${after}&limit=10000`);
    const blob = await page.blob();
    if (!blob.size) break;
    parts.push(blob);
    after = page.headers.get("Everbatch-Cursor");
    if (page.headers.get("X-Incomplete") === "false") break;
  }
  saveBlob(parts, name);
}
