// Puts newer figures in place of those shown, unless somebody is at work in them.

const EVERY = 5000;

async function look() {
  const live = document.getElementById("live");
  const reply = await fetch(live.dataset.source, { headers: { accept: "application/json" } });
  if (!reply.ok) return;
  const { number } = await reply.json();
  if (number === null || String(number) === live.dataset.number) return;
  const page = await fetch(location.href);
  if (!page.ok || live.contains(document.activeElement)) return;
  const fresh = new DOMParser().parseFromString(await page.text(), "text/html").getElementById("live");
  const open = [...live.querySelectorAll("details[open] > summary")].map((one) => one.textContent);
  for (const one of fresh.querySelectorAll("details > summary")) {
    if (open.includes(one.textContent)) one.parentElement.open = true;
  }
  live.replaceWith(fresh);
}

setInterval(() => { if (!document.hidden) look().catch(() => {}); }, EVERY);
