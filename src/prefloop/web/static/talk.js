// Conversations: shows an answer when it is there, keeps what is being written, sends with Ctrl+Enter.
// Without this the page is plain forms, and reloads itself while it waits.

const talk = document.querySelector(".talk");
const key = `prefloop:${location.pathname}:${talk.dataset.turns}`;
const message = document.getElementById("message");
const later = (ms) => new Promise((resume) => setTimeout(resume, ms));

if (message) {
  try { message.value ||= sessionStorage.getItem(key) ?? ""; } catch { /* nothing was kept */ }
  const keep = () => { try { sessionStorage.setItem(key, message.value); } catch { /* the page has it */ } };
  message.addEventListener("input", keep);
  if (message.value) keep();  // what was written before this ran
  message.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) message.form.requestSubmit();
  });
}

(document.getElementById("error") ?? document.getElementById(location.hash.slice(1)))?.focus();

// What somebody has changed in a form and not saved, but for a form that is being sent.
let sent = null;
function unsaved() {
  const fields = [...document.querySelectorAll(".marks textarea, .marks input[type=checkbox]")].filter((one) => one.form !== sent);
  return fields.some((one) => (one.type === "checkbox" ? one.checked !== one.defaultChecked : one.value !== one.defaultValue));
}
addEventListener("submit", (event) => { sent = event.target; });
addEventListener("beforeunload", (event) => { if (unsaved()) event.preventDefault(); });

async function waiting() {
  try {
    const reply = await fetch(talk.dataset.state, { headers: { accept: "application/json" } });
    return reply.ok ? (await reply.json()).waiting : reply.status !== 401;
  } catch {
    return true;
  }
}

function show() {
  location.hash = `#turn-${talk.dataset.turns}`;
  location.reload();
}

const arrived = document.getElementById("arrived");
if (arrived) {
  arrived.querySelector("button").addEventListener("click", show);
  while (await waiting()) await later(1000);
  if (unsaved()) {
    document.getElementById("status").textContent = "The answer is there. Save what you are writing, then show it.";
    arrived.hidden = false;
  } else {
    show();
  }
}
