// Ranking more than two answers: a list to drag, to move by buttons or by keys. Ranks go out in the form's own fields.

const list = document.getElementById("ranks");
const form = document.getElementById("task");
const state = document.getElementById("state");
const ties = list.dataset.ties === "1";
const wide = matchMedia("(min-width: 900px)");
const locked = document.getElementById("fields").disabled;
let marked = null;

const rows = () => [...list.children];
const tie = (row) => row.querySelector("[data-tie]");
const field = (row) => row.querySelector("select");

// Ranks in order: as many as stand before, or that of the one above.
function update() {
  let rank = 0;
  rows().forEach((row, at) => {
    const box = tie(row);
    if (box) {
      box.disabled = at === 0;
      if (at === 0) box.checked = false;
    }
    if (!box?.checked) rank = at;
    field(row).value = String(rank);
    row.querySelector(".position").textContent = rank + 1;
    row.classList.toggle("tied", Boolean(box?.checked));
  });
}
// The order that the fields say: a draft that came back.
function restore() {
  const rank = (row) => (field(row).value === "" ? rows().length : Number(field(row).value));
  const sorted = rows().sort((a, b) => rank(a) - rank(b) || a.dataset.place - b.dataset.place);
  list.append(...sorted);
  sorted.forEach((row, at) => {
    if (tie(row)) tie(row).checked = at > 0 && field(row).value !== "" && rank(row) === rank(sorted[at - 1]);
  });
  update();
}
function changed(row) {
  update();
  const at = rows().indexOf(row) + 1;
  state.textContent = `${row.dataset.name} is number ${at} of ${rows().length}`;
  form.dispatchEvent(new Event("input", { bubbles: true }));
}
function place(row, index) {
  const others = rows().filter((other) => other !== row);
  const at = Math.max(0, Math.min(index, others.length));
  if (at === rows().indexOf(row)) return;
  const below = row.nextElementSibling;
  if (ties && below && !tie(row).checked) tie(below).checked = false; // it was as good as the one that leaves
  // The others move around it: a row that leaves the document would lose focus and pointer.
  others.slice(0, at).forEach((other) => row.before(other));
  others.slice(at).reverse().forEach((other) => row.after(other));
  if (ties) tie(row).checked = Boolean(row.nextElementSibling && tie(row.nextElementSibling).checked); // among equals
  changed(row);
}
function mark(row) {
  marked?.classList.remove("marked");
  marked = row;
  row.classList.add("marked");
  row.focus({ preventScroll: true });
  row.scrollIntoView({ block: "nearest" });
  if (wide.matches) document.getElementById(`answer-${row.dataset.place}`).scrollIntoView({ block: "nearest" });
}

list.addEventListener("focusin", (event) => {
  const row = event.target.closest("li");
  if (row !== marked) {
    marked?.classList.remove("marked");
    marked = row;
    row.classList.add("marked");
  }
});
list.addEventListener("click", (event) => {
  const button = event.target.closest("[data-move]");
  if (!button) return;
  const row = button.closest("li");
  place(row, rows().indexOf(row) + Number(button.dataset.move));
  button.focus();
});
list.addEventListener("input", (event) => {
  if (!event.target.matches("[data-tie]")) return;
  event.stopPropagation();
  changed(event.target.closest("li"));
});

list.addEventListener("pointerdown", (event) => {
  const row = event.target.closest(".handle") && event.button === 0 ? event.target.closest("li") : null;
  if (!row) return;
  event.preventDefault();
  row.classList.add("dragged");
  const middle = (other) => { const box = other.getBoundingClientRect(); return box.top + box.height / 2; };
  const move = (at) => place(row, rows().filter((other) => other !== row && middle(other) < at.clientY).length);
  const drop = () => {
    row.classList.remove("dragged");
    removeEventListener("pointermove", move);
    removeEventListener("pointerup", drop);
    removeEventListener("pointercancel", drop);
  };
  addEventListener("pointermove", move);
  addEventListener("pointerup", drop);
  addEventListener("pointercancel", drop);
});

document.addEventListener("keydown", (event) => {
  if (locked || form.inert || event.defaultPrevented || event.isComposing || event.ctrlKey || event.metaKey) return;
  if (!document.getElementById("keys-on").checked || document.querySelector("dialog[open]") || event.target.closest("textarea, select")) return;
  const at = rows().indexOf(marked);
  const arrow = { ArrowUp: -1, ArrowDown: 1 }[event.key];
  const step = event.altKey ? null : { j: 1, k: -1 }[event.key.toLowerCase()];
  if (event.altKey && arrow && marked) place(marked, at + arrow);
  else if (event.altKey) return;
  else if (step && event.shiftKey && marked) place(marked, at + step);
  else if (step && !event.shiftKey) mark(rows()[marked ? Math.max(0, Math.min(at + step, rows().length - 1)) : 0]);
  else if (/^[1-9]$/.test(event.key) && Number(event.key) <= rows().length && marked) place(marked, Number(event.key) - 1);
  else if (event.key === "t" && ties && at > 0) tie(marked).click();
  else return;
  event.preventDefault();
});

form.addEventListener("filled", restore);
list.classList.add("scripted");
for (const hidden of list.querySelectorAll(".handle, .moves")) hidden.hidden = false;
for (const pick of list.querySelectorAll(".pick")) pick.hidden = true;
restore();
