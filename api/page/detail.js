// One batch.

import { download, downloadSoFar, get, post } from "./api.js";
import { $, bar, counts, el, isPaused, nameOf, number, rate, seconds, state, waiting, when } from "./dom.js";

const ENDED = ["completed", "failed", "expired", "cancelled"];

function sure() {
  return new Promise((resolve) => {
    const dialog = $("sure-dialog");
    dialog.returnValue = "no";
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
    dialog.showModal();
  });
}

function actions(batch, act) {
  const id = batch.id;
  const button = (text, run, kind = "") => el("button", { type: "button", class: kind, onclick: () => act(run) }, text);
  const made = [];
  const failed = batch.request_counts.failed;
  if (batch.output_file_id) made.push(button("Download results", () => download(batch.output_file_id, `${id}_output.jsonl`)));
  if (batch.error_file_id) made.push(button("Download errors", () => download(batch.error_file_id, `${id}_error.jsonl`)));
  if (ENDED.includes(batch.status)) {
    if (batch.error_file_id && !batch.retried_by) {
      const retry = async () => { location.hash = `#/batches/${(await post(`v1/batches/${id}/retry`)).id}`; };
      made.push(button(`Retry ${number(failed)} failed`, retry, "main"));
    }
  } else {
    if (batch.request_counts.completed + failed) made.push(button("Download what is done", () => downloadSoFar(id, `${id}_partial.jsonl`)));
    if (batch.status === "in_progress" || batch.status === "validating") {
      made.push(isPaused(batch)
        ? button("Resume", () => post(`v1/batches/${id}/resume`), "main")
        : button("Pause", () => post(`v1/batches/${id}/pause`)));
    }
    if (batch.status !== "cancelling") made.push(button("Cancel", async () => (await sure()) && post(`v1/batches/${id}/cancel`), "danger"));
  }
  const ui = document.body.dataset.temporalUi;
  if (ui) made.push(el("a", { class: "button", href: `${ui}/workflows/${id}`, target: "_blank", rel: "noopener noreferrer" }, "Temporal"));
  return el("div", { class: "actions" }, made);
}

function facts(batch) {
  const { progress, usage } = batch;
  const link = (id) => el("a", { class: "mono", href: `#/batches/${id}` }, id);
  const ended = batch.completed_at ?? batch.failed_at ?? batch.expired_at ?? batch.cancelled_at;
  const known = [
    ["Model", batch.model],
    ["Endpoint", batch.endpoint],
    ["Rate", rate(progress)],
    ["Time left", seconds(progress?.eta_seconds)],
    ["In flight", progress?.in_flight === null || progress?.in_flight === undefined ? "" : number(progress.in_flight)],
    ["Created", when(batch.created_at)],
    ended ? ["Ended", when(ended)] : ["Window ends", when(batch.expires_at)],
    ended ? ["Took", seconds(ended - batch.created_at)] : ["", ""],
    ["Tokens", usage?.total_tokens ? `${number(usage.input_tokens)} in, ${number(usage.output_tokens)} out` : ""],
    ["Retry of", batch.metadata?.retry_of && link(batch.metadata.retry_of)],
    ["Retried by", batch.retried_by && link(batch.retried_by)],
    ["Input file", el("span", { class: "mono" }, batch.input_file_id)],
    ...Object.entries(batch.metadata ?? {}).filter(([name]) => !["name", "retry_of"].includes(name)),
  ];
  return el("dl", {}, known.filter(([, value]) => value).map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}

function card(title, ...content) {
  return el("section", { class: "card" }, el("h2", {}, title), content);
}

function problems(batch) {
  const found = batch.errors?.data ?? [];
  if (!found.length) return null;
  const rows = found.map((one) => el("tr", {}, el("td", {}, one.line ? `line ${number(one.line)}` : ""), el("td", { class: "grow wrong" }, one.message), el("td", { class: "mono wide" }, one.code)));
  return card("Why it failed", el("table", {}, el("tbody", {}, rows)));
}

function errorSummary(batch) {
  const found = batch.error_summary ?? [];
  if (!found.length) return null;
  const rows = found.map((one) => el(
    "tr", {},
    el("td", { class: "failed-count" }, number(one.count)),
    el("td", { class: "grow" }, el("div", { class: "mono" }, one.code), one.message ?? ""),
    el("td", { class: "soft wide" }, (one.first_lines ?? []).map(number).join(", ")),
  ));
  const head = el("tr", {}, ["Requests", "Code, and one message"].map((title) => el("th", {}, title)), el("th", { class: "wide" }, "First lines"));
  const { total, failed } = batch.request_counts;
  return card("What failed", failed === total ? el("p", {}, total > 1 ? `All ${number(total)} requests failed.` : "The only request failed.") : "", el("table", { id: "error-summary" }, el("thead", {}, head), el("tbody", {}, rows)));
}

function history(found) {
  const rows = found.map((one) => el("tr", {}, el("td", {}, when(one.created_at)), el("td", { class: "grow" }, one.message)));
  return card("Events", el("table", { id: "events" }, el("tbody", {}, rows)));
}

// Draws into the view; true while something may change soon.
export async function draw(view, id, act) {
  const [batch, happened] = await Promise.all([get(`v1/batches/${id}`), get(`v1/batches/${id}/events`)]);
  const named = nameOf(batch) !== id;
  view.replaceChildren(
    el("p", {}, el("a", { href: "#/" }, "← All batches")),
    el("div", { class: "top" },
      el("div", {}, el("h1", { class: named ? "" : "mono" }, nameOf(batch)), named ? el("div", { class: "mono soft" }, id) : null),
      actions(batch, act)),
    el("section", { class: "card" },
      el("p", { class: "top" }, state(batch), counts(batch)), bar(batch.request_counts), waiting(batch), facts(batch)),
    problems(batch) ?? "",
    errorSummary(batch) ?? "",
    history(happened.data),
  );
  return !ENDED.includes(batch.status);
}

