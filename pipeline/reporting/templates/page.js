"use strict";
for (const compare of document.querySelectorAll(".compare:not(.alone)")) {
  const input = compare.querySelector("input");
  const move = () => {
    compare.style.setProperty("--at", input.value + "%");
    input.setAttribute("aria-valuetext", `${input.value} % before, ${100 - input.value} % after`);
  };
  input.addEventListener("input", move);
  move();
}

const filters = document.querySelector("form.filters");
if (filters) {
  const rows = [...document.querySelectorAll("article[data-status]")];
  const count = document.querySelector("#count");
  const chosen = (name) => new Set([...filters.querySelectorAll(`input[name="${name}"]:checked`)].map((box) => box.value));
  const has = (row, name, wanted) =>
    !wanted.size || JSON.parse(row.dataset[name]).some((value) => wanted.has(value));
  const apply = () => {
    const [status, damage, group] = [chosen("status"), chosen("damage"), chosen("group")];
    let shown = 0;
    for (const row of rows) {
      row.hidden = !(has(row, "status", status) && has(row, "damage", damage) && has(row, "group", group));
      shown += row.hidden ? 0 : 1;
    }
    count.textContent = `${shown} of ${rows.length} rows shown`;
  };
  filters.addEventListener("change", apply);
  filters.addEventListener("reset", () => setTimeout(apply));
  filters.addEventListener("submit", (event) => event.preventDefault());
  apply();
}

const review = document.querySelector("main.review");
if (review) {
  const state = document.querySelector("#state");
  const undecided = () => [...document.querySelectorAll("article[data-result]")].filter((row) => !row.dataset.decision);
  const tell = () => {
    state.textContent = `${undecided().length} on this page still to be decided`;
  };
  const decide = async (row, decision) => {
    const note = row.querySelector("input[name=note]").value;
    const answer = await fetch("decisions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ result: row.dataset.result, decision, note }),
    }).catch((error) => ({ ok: false, text: async () => String(error) }));
    const said = row.querySelector(".decided");
    if (!answer.ok) {
      said.textContent = state.textContent = `not saved: ${await answer.text()}`;
      return false;
    }
    row.dataset.decision = decision;
    for (const button of row.querySelectorAll("button")) button.setAttribute("aria-pressed", button.value === decision);
    said.textContent = decision;
    tell();
    return true;
  };
  const decideAndGoOn = async (row, decision) => {
    if (!(await decide(row, decision))) return;
    const rows = [...document.querySelectorAll("article[data-result]")];
    const later = rows.slice(rows.indexOf(row) + 1).find((one) => !one.dataset.decision);
    (later || undecided()[0])?.focus();
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest("article[data-result] button");
    if (button) decideAndGoOn(button.closest("article"), button.value);
  });
  document.addEventListener("change", (event) => {
    const row = event.target.closest("article[data-decision]");
    if (row && event.target.matches("input[name=note]")) decide(row, row.dataset.decision);
  });
  document.addEventListener("keydown", (event) => {
    const row = event.target.closest?.("article[data-result]");
    if (!row || event.target.matches("input[name=note]") || event.repeat) return;
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const decision = { a: "accepted", r: "rejected" }[event.key];
    if (decision) {
      event.preventDefault();
      decideAndGoOn(row, decision);
    }
  });
  tell();
}
