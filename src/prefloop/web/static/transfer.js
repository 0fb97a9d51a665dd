// While a job is under way: brings its news, and the files that it wrote, into the page. What stands in the forms stays.
// Without this a link in its place looks again.

const EVERY = 2000;
const PARTS = ["jobs", "exports"];

// Whether there is more to wait for.
async function look() {
  const reply = await fetch(document.getElementById("jobs").dataset.source);
  const page = new DOMParser().parseFromString(await reply.text(), "text/html");
  const fresh = page.getElementById("jobs");
  if (!reply.ok || !fresh || PARTS.some((id) => document.getElementById(id).contains(document.activeElement))) return true;
  for (const id of PARTS) {
    const [now, then] = [document, page].map((one) => one.getElementById(id));
    now.hidden = then.hidden;
    if (now.innerHTML !== then.innerHTML) now.replaceChildren(...then.childNodes);
  }
  return "busy" in fresh.dataset;
}

for (let busy = true; busy; ) {
  await new Promise((resume) => setTimeout(resume, EVERY));
  busy = await look().catch(() => true);
}
