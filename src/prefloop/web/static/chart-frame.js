// Draws what the page around this frame sends: numbers, and words of the lists below; anything else is not drawn.
"use strict";
(() => {
  const KINDS = ["line", "bars", "heatmap", "panels"];
  const UNITS = ["number", "share", "signed", "time"];
  const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "solid", "dash"];
  const LIGHT = {
    ink: "#1a1e27", soft: "#535b6b", line: "#d5d9e1", low: "#f6f7f9", full: "#8ea3f2", bad: "#a3242c",
    colors: ["#2f4fc9", "#b0560a", "#146c3a", "#8a2f8f", "#0b7285", "#a3242c", "#6b5b00", "#535b6b"],
  };
  const DARK = {
    ink: "#e8eaf0", soft: "#aab1c0", line: "#363c49", low: "#1b1e26", full: "#4659b0", bad: "#ff9aa0",
    colors: ["#93a8ff", "#f0a35e", "#7fd6a2", "#dd9be0", "#6fd0de", "#ff9aa0", "#d9c75b", "#aab1c0"],
  };
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const place = document.getElementById("chart");
  let data = null;

  const number = (value) => (Number.isFinite(value) ? value : null);
  const numbers = (values) => (Array.isArray(values) ? values.map(number) : []);
  const moment = (seconds) => new Date(seconds * 1000).toISOString().slice(0, 19); // in UTC, as in tables and pages
  const along = (values, unit) => numbers(values).map((v) => (v === null || unit !== "time" ? v : moment(v)));

  function axis(look, unit) {
    const base = { gridcolor: look.line, linecolor: look.line, zerolinecolor: look.line, automargin: true, tickangle: 0 };
    if (unit === "share") return { ...base, tickformat: ".0%" };
    if (unit === "time") return { ...base, type: "date", title: { text: "UTC" } };
    return base;
  }

  function level(look, value) {
    if (number(value) === null) return [];
    return [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: value, y1: value, line: { color: look.soft, width: 1, dash: "dot" } }];
  }

  function lines(look) {
    const traces = [];
    data.series.forEach((one, i) => {
      const color = look.colors[i % 8];
      const x = along(one.x, data.x), y = numbers(one.y);
      if (one.low) {
        const edge = { x, type: "scatter", mode: "lines", line: { width: 0, color }, hoverinfo: "skip" };
        traces.push({ ...edge, y: numbers(one.low) });
        traces.push({ ...edge, y: numbers(one.high), fill: "tonexty", fillcolor: color + "2b" });
      }
      const few = x.length < 40;
      traces.push({
        x, y, type: "scatter", mode: few ? "lines+markers" : "lines", name: String(i + 1),
        line: { color, width: 2, dash: DASHES[i % 8] }, marker: { size: 5, color },
      });
    });
    const y = axis(look, data.y);
    const annotations = data.series.length < 2 ? [] : traces.filter((t) => t.name).map((t) => ends(t));
    if (data.log) y.type = "log";
    if (data.y === "number" && !data.log) y.rangemode = "tozero";
    return [traces, { xaxis: axis(look, data.x), yaxis: y, shapes: level(look, data.reference), annotations }];
  }

  // Panels below one another, over one axis; each has an axis of its own for y.
  function panels(look) {
    const known = data.panels.filter((panel) => UNITS.includes(panel.y));
    const layout = { shapes: [] };
    const traces = [];
    const height = 1 / known.length, gap = 0.05;
    known.forEach((panel, i) => {
      const yaxis = i ? `y${i + 1}` : "y";
      const top = 1 - i * height, bottom = 1 - (i + 1) * height;
      layout[`yaxis${i ? i + 1 : ""}`] = { ...axis(look, panel.y), domain: [bottom + (i + 1 < known.length ? gap : 0), top], nticks: 5 };
      layout.shapes.push(...level(look, panel.reference).map((line) => ({ ...line, yref: yaxis })));
      for (const one of panel.series) {
        const number = traces.length;
        const color = look.colors[number % 8], x = along(one.x, "number"), y = numbers(one.y);
        const mode = x.length < 40 ? "lines+markers" : "lines";
        const trace = { x, y, yaxis, type: "scatter", mode, name: String(number + 1), marker: { size: 5, color } };
        traces.push({ ...trace, line: { color, width: 2, dash: DASHES[number % 8] } });
      }
    });
    layout.xaxis = { ...axis(look, "number"), anchor: known.length > 1 ? `y${known.length}` : "y" };
    layout.annotations = traces.filter((one) => one.x.length).map((one) => ({ ...ends(one), yref: one.yaxis }));
    if (number(data.mark) !== null) {
      const last = Math.max(...traces.flatMap((trace) => trace.x));
      const after = { type: "rect", yref: "paper", y0: 0, y1: 1, x0: data.mark, x1: last, fillcolor: look.bad, opacity: 0.14, line: { width: 0 } };
      layout.shapes.push({ ...after, layer: "below" });
    }
    return [traces, layout];
  }

  // The number of a line at its last point.
  function ends(trace) {
    const last = trace.y.findLastIndex((v) => v !== null);
    const y = data.log && trace.y[last] > 0 ? Math.log10(trace.y[last]) : trace.y[last];
    return { x: trace.x[last], y, text: trace.name, showarrow: false, xshift: 10, font: { color: trace.line.color } };
  }

  function bars(look) {
    const y = numbers(data.values);
    const x = y.map((_, i) => String(i + 1));
    const colors = x.map((_, i) => look.colors[i % 8]);
    let trace = { x, y, type: "bar", marker: { color: colors } };
    if (data.low) {
      const high = numbers(data.high), low = numbers(data.low);
      const error = {
        type: "data", symmetric: false, array: y.map((v, i) => (v === null || high[i] === null ? 0 : high[i] - v)),
        arrayminus: y.map((v, i) => (v === null || low[i] === null ? 0 : v - low[i])), color: look.soft, thickness: 2, width: 5,
      };
      trace = { x, y, type: "scatter", mode: "markers", marker: { color: colors, size: 11 }, error_y: error };
    }
    const xaxis = { ...axis(look, "number"), type: "category", showgrid: false };
    return [[trace], { xaxis, yaxis: axis(look, data.y), shapes: level(look, data.reference) }];
  }

  function heatmap(look) {
    const z = data.values.map(numbers);
    const x = (z[0] ?? []).map((_, i) => String(i + 1 + (data.apart ? z.length : 0)));
    const y = z.map((_, i) => String(i + 1));
    const [zmin, zmax] = data.y === "share" ? [0, 1] : data.y === "signed" ? [-1, 1] : [undefined, undefined];
    const trace = {
      x, y, z, zmin, zmax, type: "heatmap", xgap: 2, ygap: 2, colorscale: [[0, look.low], [1, look.full]], textfont: { color: look.ink },
      colorbar: { thickness: 12, tickformat: data.y === "share" ? ".0%" : "", outlinewidth: 0 },
      texttemplate: z.length <= 10 ? (data.y === "share" ? "%{z:.0%}" : "%{z:.2f}") : "",
    };
    const all = { type: "category", showgrid: false };
    return [[trace], { xaxis: { ...axis(look, "number"), ...all }, yaxis: { ...axis(look, "number"), ...all, autorange: "reversed" } }];
  }

  const ready = () => parent.postMessage("ready", location.origin);

  function draw() {
    if (!data || !KINDS.includes(data.kind) || !UNITS.includes(data.y)) return;
    const look = dark.matches ? DARK : LIGHT;
    const [traces, layout] = { line: lines, bars, heatmap, panels }[data.kind](look);
    const whole = {
      ...layout, showlegend: false, margin: { l: 48, r: 16, t: 12, b: 36 }, paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)", font: { color: look.ink, size: 12, family: "system-ui, sans-serif" },
      hoverlabel: { namelength: -1 },
    };
    Plotly.react(place, traces, whole, { displayModeBar: false, responsive: true });
  }

  addEventListener("message", (event) => {
    if (event.source !== parent || event.origin !== location.origin) return;
    if (event.data === "here") return ready();
    data = event.data;
    draw();
  });
  dark.addEventListener("change", draw);
  ready();
})();
