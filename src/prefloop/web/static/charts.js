// Hands each chart frame its numbers, when the frame says that it is ready.

addEventListener("message", (event) => {
  if (event.origin !== location.origin || event.data !== "ready") return;
  const frame = [...document.querySelectorAll("iframe[data-chart]")].find((one) => one.contentWindow === event.source);
  if (frame) event.source.postMessage(JSON.parse(frame.dataset.chart), location.origin);
});

// A frame that was ready before this module ran says so again.
for (const frame of document.querySelectorAll("iframe[data-chart]")) frame.contentWindow.postMessage("here", location.origin);
