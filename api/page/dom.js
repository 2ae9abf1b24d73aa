// Elements and texts. Text from the server is only ever set as text, never as markup.

export const $ = (id) => document.getElementById(id);

export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

// Make the children of one element like those of another, and leave alone what is the same: a click that began before
// goes where it was meant to go, and the focus stays. A button that differs is replaced, with what it does.
export function patch(old, fresh) {
  const now = [...old.childNodes];
  [...fresh.childNodes].forEach((node, index) => {
    const there = now[index];
    if (!there) old.append(node);
    else if (there.nodeType !== Node.ELEMENT_NODE || there.tagName !== node.tagName || node.tagName === "BUTTON") {
      if (!there.isEqualNode(node)) there.replaceWith(node);
    } else if (!there.isEqualNode(node)) {
      for (const { name } of [...there.attributes]) if (!node.hasAttribute(name)) there.removeAttribute(name);
      for (const { name, value } of node.attributes) if (name !== "style") there.setAttribute(name, value);
      there.style.cssText = node.style.cssText;
      patch(there, node);
    }
    if (there) now[index] = null;
  });
  now.filter(Boolean).forEach((node) => node.remove());
}

export function number(value) {
  return value === null || value === undefined ? "" : value.toLocaleString("en");
}

export function seconds(value) {
  if (value === null || value === undefined) return "";
  if (value < 60) return `${Math.round(value)} s`;
  if (value < 3600) return `${Math.round(value / 60)} min`;
  if (value < 48 * 3600) return `${Math.floor(value / 3600)} h ${Math.round((value % 3600) / 60)} min`;
  return `${Math.round(value / 86400)} d`;
}

export function when(unix) {
  if (!unix) return "";
  const date = new Date(unix * 1000);
  return el("time", { datetime: date.toISOString(), title: date.toISOString() }, date.toLocaleString([], { dateStyle: "medium", timeStyle: "short" }));
}

export function ago(unix) {
  const passed = Math.max(0, Date.now() / 1000 - unix);
  return passed < 5 ? "just now" : `${seconds(passed)} ago`;
}

export function rate(progress) {
  const value = progress?.requests_per_second;
  return value === null || value === undefined ? "" : `${number(Number(value.toPrecision(3)))}/s`;
}

export function bar(counts) {
  const share = (part) => `${counts.total ? (100 * part) / counts.total : 0}%`;
  const completed = el("i"), failed = el("i");
  completed.style.width = share(counts.completed);
  failed.style.width = share(counts.failed);
  const label = `${counts.completed + counts.failed} of ${counts.total} requests done`;
  return el("div", { class: "bar", role: "img", "aria-label": label }, completed, failed);
}

export function counts(batch) {
  const { total, completed, failed } = batch.request_counts;
  const text = total ? `${number(completed + failed)} of ${number(total)}` : "";
  return el("span", { class: "counts" }, text, failed ? el("b", {}, ` · ${number(failed)} failed`) : null);
}

export function isPaused(batch) {
  const progress = batch.progress;
  return Boolean(progress) && (/^paus/.test(progress.waiting?.kind ?? "") || /is paused/.test(progress.waiting_reason ?? ""));
}

export function state(batch) {
  const paused = batch.status === "in_progress" && isPaused(batch);
  const name = paused ? "paused" : batch.status;
  return el("span", { class: `state ${name}` }, name.replace("_", " "));
}

export function waiting(batch) {
  const reason = batch.progress?.waiting_reason;
  if (!reason) return null;
  return el("div", { class: "waiting" }, /^(waiting|paused)/i.test(reason) ? reason : `Waiting: ${reason}`);
}

// In one line, why a batch failed, or what most of its failed requests failed with.
export function whatFailed(batch) {
  const [error, ...more] = batch.errors?.data ?? [];
  const [code, ...codes] = batch.error_summary ?? [];
  if (!error && !code) return null;
  const first = error ? `${error.line ? `Line ${number(error.line)}: ` : ""}${error.message}` : `${number(code.count)} × ${code.code}`;
  const others = more.length || codes.length;
  return el("div", { class: "wrong" }, others ? `${first} (and ${number(others)} more)` : first);
}

export const nameOf = (batch) => batch.metadata?.name || batch.id;
