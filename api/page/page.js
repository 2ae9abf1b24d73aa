// Which view is shown, and when it is drawn again.

import { forgetKey, hasKey } from "./api.js";
import * as detail from "./detail.js";
import { $, el, patch } from "./dom.js";
import * as list from "./list.js";
import { prepare } from "./start.js";

const SOON = 1000, LATER = 10_000, LIST = 2500;
const view = $("view");
let timer = 0;
let shown = "";
let drawing = 0;

function problem(text) {
  $("problem").textContent = text;
  $("problem").hidden = !text;
}

// Do something on behalf of a person, say what goes wrong, and show what came of it.
async function act(run) {
  for (const button of view.querySelectorAll("button")) button.disabled = true;
  let failure = "";
  try {
    await run();
  } catch (error) {
    failure = error.message;
  }
  await draw();
  if (failure) problem(failure);
}

async function draw() {
  clearTimeout(timer);
  const mine = ++drawing;
  const place = location.hash;
  const id = /^#\/batches\/([\w-]+)$/.exec(place)?.[1];
  if (place !== shown) view.replaceChildren(el("p", { class: "soft" }, "Loading …"));
  let pause = id ? SOON : LIST;
  // Drawn beside the page first: what is slow or fails must not take away what is there.
  const drawn = document.createElement("div");
  try {
    const isLive = id ? await detail.draw(drawn, id, act) : await list.draw(drawn, draw);
    if (mine !== drawing) return;
    if (!isLive) pause = LATER;
    patch(view, drawn);
    problem("");
  } catch (error) {
    if (mine !== drawing) return;
    problem(error.message);
    if (error.status === 404 && place !== shown) view.replaceChildren(el("p", {}, el("a", { href: "#/" }, "← All batches")));
    pause = LIST;
  }
  if (place !== shown) scrollTo(0, 0);
  shown = place;
  document.title = id ? `${id} · Everbatch` : "Everbatch";
  timer = setTimeout(() => (document.hidden ? (timer = 0) : draw()), pause);
}

addEventListener("hashchange", () => { list.begin(); draw(); });
document.addEventListener("visibilitychange", () => !document.hidden && draw());
$("forget").addEventListener("click", forgetKey);
$("forget").hidden = !hasKey();
prepare();
draw();
