// The list of batches.

import { get } from "./api.js";
import { ago, bar, counts, el, nameOf, rate, seconds, state, waiting, whatFailed } from "./dom.js";

const PAGE = 25;
let pages = 1;

export function begin() {
  pages = 1;
}

function row(batch) {
  const named = nameOf(batch) !== batch.id;
  const created = `${ago(batch.created_at)}${named ? ` · ${batch.id}` : ""}`;
  return el(
    "a",
    { class: "row", href: `#/batches/${batch.id}` },
    el("div", {}, el("div", { class: named ? "name" : "name mono" }, nameOf(batch)), el("div", { class: "sub" }, created)),
    el("div", { class: "model" }, batch.model ?? ""),
    el("div", { class: "progress" }, bar(batch.request_counts), counts(batch)),
    el("div", { class: "number rate" }, rate(batch.progress)),
    el("div", { class: "number" }, seconds(batch.progress?.eta_seconds)),
    state(batch),
    waiting(batch),
    whatFailed(batch),
  );
}

async function load() {
  const batches = [];
  let more = true;
  for (let page = 0; page < pages && more; page++) {
    const after = batches.length ? `&after=${batches.at(-1).id}` : "";
    const answer = await get(`v1/batches?limit=${PAGE}${after}`);
    batches.push(...answer.data);
    more = answer.has_more;
  }
  return { batches, more };
}

// Draws into the view; true while something may change soon.
export async function draw(view, again) {
  const { batches, more } = await load();
  if (!batches.length) {
    const text = "No batches yet. Start one here, with an SDK, or with the command line: ";
    view.replaceChildren(el("section", { class: "card empty" }, el("p", {}, text, el("code", {}, "everbatch submit FILE"))));
    return true;
  }
  const titles = ["Batch", "Model", "Progress", "Rate", "Time left", "State"].map((title) => el("span", {}, title));
  view.replaceChildren(
    el("section", { class: "card list" }, el("div", { class: "row head" }, titles), batches.map(row)),
    more ? el("p", { class: "more" }, el("button", { type: "button", onclick: () => { pages++; again(); } }, "Show more")) : "",
  );
  return true;
}
