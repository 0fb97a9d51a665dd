// Labeling: drafts, the lease's heartbeat, submits that wait for the server's word, and keys.
// Without this the page is a plain form that does the same.

const owner = (page) => page.documentElement.dataset.owner; // which account of which workspace a page is for
const EVERYBODYS = "prefloop:task:";
const PREFIX = `${EVERYBODYS}${owner(document)}:`;
const KEYS = "prefloop:keys";
const KEPT_MS = 30 * 24 * 3600 * 1000;
const OWN = ["csrf", "nonce", "version", "confirm"]; // of the page, not of the labeler

const form = document.getElementById("task");
const fields = document.getElementById("fields");
const trouble = document.getElementById("trouble");
const state = document.getElementById("state");
let csrf = document.querySelector("input[name=csrf]")?.value ?? "";

// What this browser keeps of a task until the server has it: {fields, at}, and `sending` where it is an answer on its
// way, `change` where it is to replace one that the server has, `say` where the labeler is to be told. Others who sign
// in at this browser neither see it nor send it.

function kept(task) {
  try { return JSON.parse(localStorage.getItem(PREFIX + task)); } catch { return null; }
}
function keep(task, entry) {
  try { localStorage.setItem(PREFIX + task, JSON.stringify({ ...entry, at: Date.now() })); } catch { /* the server has the drafts */ }
}
function forget(task, at) {
  if (at && kept(task)?.at !== at) return; // another tab has kept something newer
  try { localStorage.removeItem(PREFIX + task); } catch { /* nothing was kept */ }
}
function forgetOld() {
  try {
    for (const key of Object.keys(localStorage).filter((key) => key.startsWith(EVERYBODYS))) {
      let at = 0;
      try { at = JSON.parse(localStorage.getItem(key)).at; } catch { /* it is none of ours */ }
      if (!(at > Date.now() - KEPT_MS)) localStorage.removeItem(key);
    }
  } catch { /* nothing was kept */ }
}
function keptTasks() {
  try { return Object.keys(localStorage).filter((key) => key.startsWith(PREFIX)).map((key) => key.slice(PREFIX.length)); } catch { return []; }
}

// Requests.

function body(given) {
  const made = new URLSearchParams(given);
  made.set("csrf", csrf);
  return made;
}
function send(address, given) {
  return fetch(address, {
    method: "POST", body: body(given), redirect: "manual", headers: { accept: "application/json" }, signal: AbortSignal.timeout(20000),
  });
}
const refused = (reply) => [401, 403, 413].includes(reply.status); // 413: strangers may send but little

// A token of the session as it is now; false where nobody is signed in, or somebody else.
async function renewToken() {
  const reply = await fetch(location.href);
  if (reply.redirected || !reply.ok) return false;
  const page = new DOMParser().parseFromString(await reply.text(), "text/html");
  if (owner(page) !== owner(document)) return false;
  csrf = page.querySelector("input[name=csrf]")?.value ?? csrf;
  for (const input of document.querySelectorAll("input[name=csrf]")) input.value = csrf;
  return true;
}

// One attempt: {to}, {problems, confirm, missing} (whether there is no such task), or {again: why} where it may work later.
async function attempt(task, given) {
  try {
    let reply = await send(`/t/${task}/submit`, given);
    if (refused(reply)) {
      if (!(await renewToken())) return { again: "You are signed out. Your answer is kept here and goes out once you have signed in.", login: true };
      reply = await send(`/t/${task}/submit`, given);
    }
    const later = reply.status >= 500 || [401, 403, 408, 429].includes(reply.status);
    if (!later) {
      const outcome = await reply.json();
      if (outcome.to) return outcome;
      return { confirm: outcome.confirm, problems: outcome.problems ?? { "": outcome.error }, missing: reply.status === 404 };
    }
    return { again: "Not saved yet: the server is in trouble. Trying again." };
  } catch {
    return { again: "Not saved yet: the server cannot be reached. Trying again." };
  }
}

// Until the server has answered. `tell` gets what is the matter meanwhile.
async function deliver(task, given, tell) {
  for (let seconds = 1; ; seconds = Math.min(2 * seconds, 30)) {
    const outcome = await attempt(task, given);
    if (!outcome.again) return outcome;
    tell(outcome);
    await new Promise((resume) => {
      setTimeout(resume, 1000 * seconds);
      addEventListener("online", resume, { once: true });
    });
  }
}

function say(text, address, words) {
  trouble.hidden = false;
  if (trouble.textContent.startsWith(text)) return; // said already: no second announcement
  trouble.textContent = text;
  if (address) trouble.append(" ", Object.assign(document.createElement("a"), { href: address, textContent: words }));
}
function tell(outcome) {
  if (outcome.login) say(outcome.again, `/login?next=${encodeURIComponent(location.pathname)}`, "Sign in");
  else say(outcome.again);
}

// Answers and drafts of other tasks that never got through, from before a crash or a closed page.
async function sendLeftovers(except) {
  for (const task of keptTasks()) {
    const entry = kept(task);
    if (!entry || task === except || entry.change) continue;
    if (entry.sending) {
      const outcome = await deliver(task, entry.fields, tell);
      trouble.hidden = true;
      if (outcome.to) forget(task);
      if (outcome.to || outcome.missing) continue;
      keep(task, { fields: entry.fields });
      say("An answer from before could not be kept as it was.", `/t/${task}`, "Look at it");
    } else {
      const reply = await send(`/t/${task}/draft`, entry.fields).catch(() => null);
      if (reply?.ok) forget(task, entry.at);
    }
  }
}

forgetOld();
if (form) begin();
sendLeftovers(form?.dataset.task);
addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
rememberGuidelines();
letKeysScroll();
document.addEventListener("toggle", letKeysScroll, true);
addEventListener("resize", letKeysScroll);

// Wide code and tables scroll sideways: by keys too.
function letKeysScroll() {
  for (const box of document.querySelectorAll(".text pre, .text table")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}

// Guidelines stand open where they are not those that were read last.
function rememberGuidelines() {
  const box = document.getElementById("guidelines");
  if (!box) return;
  try {
    const key = `prefloop:guidelines:${box.dataset.campaign}`;
    const seen = localStorage.getItem(key);
    box.open = seen !== null && seen !== box.dataset.version;
    localStorage.setItem(key, box.dataset.version);
  } catch { /* closed then */ }
}

function begin() {
  const task = form.dataset.task;
  const locked = fields.disabled;
  let busy = false;
  let dirty = false;
  let timer = 0;

  // Seconds in which the page was to be seen.
  const watch = form.elements.seconds;
  let since = null;
  function look() {
    if (since !== null) watch.value = (Number(watch.value) + (performance.now() - since) / 1000).toFixed(1);
    since = document.visibilityState === "visible" ? performance.now() : null;
  }
  look();

  // The form, and what was kept of it.
  function read() {
    look();
    return [...new FormData(form)].filter(([name]) => name !== "csrf");
  }
  function fill(given) {
    for (const control of form.elements) {
      if (!control.name || OWN.includes(control.name)) continue;
      const values = given.filter(([name]) => name === control.name).map(([, value]) => value);
      if (control.type === "radio" || control.type === "checkbox") control.checked = values.includes(control.value);
      else if (values.length) control.value = values[0];
    }
    form.dispatchEvent(new Event("filled"));
  }

  // Drafts. The server has none of an answer that replaces another: those stay here.
  const changes = () => [...form.querySelectorAll("[name=confirm]")].some((input) => input.value === "change");
  function changed() {
    if (busy || locked) return;
    keep(task, { fields: read(), change: changes() });
    if (changes()) return;
    dirty = true;
    clearTimeout(timer);
    timer = setTimeout(saveDraft, 1000);
  }
  async function saveDraft() {
    clearTimeout(timer);
    const given = read();
    dirty = false;
    const reply = await send(`/t/${task}/draft`, given).catch(() => null);
    if (busy) return;
    if (reply?.ok && !dirty) { forget(task); state.textContent = "Draft saved"; return; }
    dirty = true;
    if (reply && refused(reply)) await renewToken().catch(() => false);
    timer = setTimeout(saveDraft, reply?.ok ? 1000 : 5000);
  }
  form.addEventListener("input", changed);
  const early = [...form.elements].some((control) => (
    "defaultValue" in control && (control.value !== control.defaultValue || control.checked !== control.defaultChecked)
  )); // written before this script was there to hear it

  // Submits.
  function show(problems, confirm) {
    for (const line of form.querySelectorAll("[data-problem]")) {
      line.textContent = problems[line.dataset.problem] ?? "";
      line.hidden = !line.textContent;
    }
    if (confirm) {
      const word = Object.assign(document.createElement("input"), { type: "hidden", name: "confirm", value: confirm });
      form.append(word);
    }
    const shown = [...form.querySelectorAll("[data-problem]")].filter((line) => !line.hidden);
    shown[0]?.scrollIntoView({ block: "nearest" });
    const why = shown.map((line) => line.textContent).join(" "); // for those who hear the page
    state.replaceChildren("Not kept yet", Object.assign(document.createElement("span"), { className: "unseen", textContent: `: ${why}` }));
    return shown[0];
  }
  async function submit(given) {
    if (busy) return;
    busy = true;
    clearTimeout(timer);
    keep(task, { fields: given, sending: true });
    const focused = document.activeElement;
    form.inert = true;
    state.textContent = "Saving";
    const outcome = await deliver(task, given, tell);
    trouble.hidden = true;
    if (outcome.to) {
      forget(task);
      location.assign(outcome.to);
      return;
    }
    busy = false;
    form.inert = false;
    if (outcome.confirm === "reload") {
      keep(task, { fields: given, say: outcome.problems[""] });
      location.reload();
      return;
    }
    const first = show(outcome.problems, outcome.confirm);
    keep(task, outcome.missing ? { fields: given, sending: true } : { fields: given, change: changes() });
    const field = first?.closest("fieldset:not(#fields), .field")?.querySelector("input, textarea");
    (outcome.confirm ? document.getElementById("submit") : field ?? focused)?.focus({ preventScroll: true });
  }
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    submit(read());
  });

  // What was kept comes back; what was on its way goes out again, under its own number.
  const entry = kept(task);
  if (entry && (entry.sending || !locked)) fill(entry.fields);
  if (entry?.sending) submit(entry.fields);
  else if (entry && !locked && !changes()) saveDraft();
  else if (!entry && early) changed();
  if (entry?.say) show({ "": entry.say });

  // The lease.
  const renew = () => {
    if (document.visibilityState === "visible" && !locked) send(`/t/${task}/renew`, []).catch(() => null);
  };
  setInterval(renew, 30000);
  document.addEventListener("visibilitychange", () => { look(); renew(); });
  addEventListener("pagehide", () => {
    if (dirty && !busy) navigator.sendBeacon(`/t/${task}/draft`, body(read()));
  });

  prepareEdit();
  prepareKeys(() => busy || locked);
}

function prepareEdit() {
  const button = document.getElementById("prefill");
  const edit = document.getElementById("edit");
  if (!button) return;
  button.hidden = false;
  button.addEventListener("click", () => {
    if (edit.value.trim() && !confirm("Replace what you wrote?")) return;
    const axis = form.querySelector(".axis input[type=radio]:checked");
    const best = document.querySelector("#ranks li")?.dataset.place ?? (Number(axis?.value ?? 0) > 0 ? 1 : 0);
    edit.value = document.getElementById(`answer-${best}`).dataset.text;
    edit.dispatchEvent(new Event("input", { bubbles: true }));
    edit.focus();
  });
}

function prepareKeys(idle) {
  const axes = [...form.querySelectorAll("[data-axis]")];
  const dialog = document.getElementById("keys");
  const button = document.getElementById("show-keys");
  let current = 0;

  function mark(index) {
    current = Math.max(0, Math.min(index, axes.length - 1));
    axes.forEach((axis, at) => axis.classList.toggle("current", at === current && axes.length > 1));
    if (axes.length > 1) axes[current].scrollIntoView({ block: "nearest" });
  }
  function choose(key, rating) {
    const radio = rating?.querySelector(`[value="${key}"]`) ?? axes[current]?.querySelector(`[data-key="${key}"]`);
    if (!radio) return false;
    radio.focus({ preventScroll: true });
    radio.checked = true;
    radio.dispatchEvent(new Event("input", { bubbles: true }));
    if (!rating) mark(current + 1);
    return true;
  }
  // A checkbox is toggled, a text field entered, details opened or shut, a button pressed.
  function act(target) {
    if (target.matches("textarea")) { target.focus(); target.scrollIntoView({ block: "center" }); }
    else if (target.matches("details")) { target.open = !target.open; if (target.open) target.scrollIntoView({ block: "nearest" }); }
    else target.click();
  }

  axes.forEach((axis, at) => {
    axis.addEventListener("focusin", () => mark(at));
    axis.addEventListener("change", () => mark(at + 1));
  });
  if (axes.length) mark(0);
  button.hidden = false;
  button.addEventListener("click", () => dialog.showModal());
  const on = document.getElementById("keys-on");
  try { on.checked = localStorage.getItem(KEYS) !== "off"; } catch { /* on then */ }
  on.addEventListener("change", () => {
    try { localStorage.setItem(KEYS, on.checked ? "on" : "off"); } catch { /* for this page then */ }
  });

  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.isComposing || event.ctrlKey || event.altKey || event.metaKey || dialog.open) return;
    if (!on.checked) return; // who speaks to the machine would press them unawares
    const text = event.target.closest("textarea, select, input:not([type=radio], [type=checkbox])");
    if (text) {
      if (event.key === "Escape") text.blur();
      return;
    }
    if (event.repeat || (idle() && !["u", "g", "d", "?"].includes(event.key))) return;
    if (event.key === "Enter") {
      if (event.target.closest("button, a, summary")) return;
      form.requestSubmit();
    } else if (event.key === "Backspace" && axes.length > 1) {
      mark(current - 1);
    } else {
      const digit = /^[0-9]$/.test(event.key) ? event.key : event.shiftKey ? null : /^Digit([0-9])$/.exec(event.code)?.[1];
      if (!digit || !choose(digit, event.target.closest(".rating"))) {
        const target = document.querySelector(`[aria-keyshortcuts="${CSS.escape(digit ?? event.key)}"]`);
        if (!target || target.disabled) return;
        act(target);
      }
    }
    event.preventDefault();
  });
}
