// Draws what a run logs while it goes on: asks every two seconds for what came after the last step that is drawn.

const EVERY_MS = 2000;
const MOST_POINTS = 1000;
const run = document.getElementById("run");
const figures = [...document.querySelectorAll("[data-metrics]")].filter((one) => one.dataset.stage === run.dataset.stage);

const read = (figure) => JSON.parse(figure.querySelector("iframe").dataset.chart);
const linesOf = (data) => data.panels.flatMap((panel) => panel.series);
const last = () => Math.max(-1, ...figures.flatMap((figure) => linesOf(read(figure)).map((line) => line.x.at(-1) ?? -1)));

// Every other point of a line that got long, the newest among them.
function thin(line) {
  if (line.x.length <= MOST_POINTS) return;
  for (const axis of ["x", "y"]) line[axis] = line[axis].filter((_, i) => (line[axis].length - 1 - i) % 2 === 0);
}

function append(figure, series) {
  const data = read(figure);
  figure.dataset.metrics.split(" ").forEach((metric, i) => {
    const line = linesOf(data)[i];
    for (const [step, value] of series[metric] ?? []) {
      line.x.push(step);
      line.y.push(value);
    }
    thin(line);
  });
  const frame = figure.querySelector("iframe");
  frame.dataset.chart = JSON.stringify(data);
  frame.contentWindow.postMessage(data, location.origin);
}

async function poll() {
  const reply = await fetch(`${run.dataset.run}/${run.dataset.stage}/series?after=${last()}`, { headers: { accept: "application/json" } });
  if (!reply.ok) return;
  const found = await reply.json();
  const drawn = new Set(figures.flatMap((figure) => figure.dataset.metrics.split(" ")));
  const fresh = Object.entries(found.series).some(([metric, points]) => points.length && !drawn.has(metric));
  if (found.state !== run.dataset.state || found.stage !== run.dataset.stage || fresh) return location.reload();
  if (Object.values(found.series).some((points) => points.length)) for (const figure of figures) append(figure, found.series);
  for (const place of document.querySelectorAll("[data-step]")) place.textContent = found.step.toLocaleString("en");
}

while (run.dataset.state === "running") {
  await new Promise((resume) => setTimeout(resume, EVERY_MS));
  if (!document.hidden) await poll().catch(() => { /* the server is away; it may come back */ });
}
