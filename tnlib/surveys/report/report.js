"use strict";
// Draws a survey. All text from the survey enters the page as text, never as HTML.

const COLOURS = ["#4c8dd6", "#e08a3c", "#3fa672", "#c65b9b", "#8d74d6", "#b3a13b", "#5ab4c4", "#d1605e"];
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "solid", "dash", "dot"];
const SHOWN_ROWS = 500;
let D;

async function unpacked(id) {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), c => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

function element(tag, fields, ...children) {
  const made = Object.assign(document.createElement(tag), fields || {});
  made.append(...children);
  return made;
}

function section(title, text) {
  const made = element("section", {}, element("h2", { textContent: title }));
  if (text) made.append(element("p", { textContent: text }));
  document.getElementById("main").append(made);
  return made;
}

function choice(parent, label, options, change) {
  // A select of [value, text] pairs; with a single option there is nothing to choose.
  const select = element("select", { onchange: () => change() });
  for (const [value, text] of options) select.append(element("option", { value, textContent: text }));
  const holder = element("label", {}, label, select);
  if (options.length < 2) holder.hidden = true;
  parent.append(holder);
  return select;
}

const percent = x => `${+(100 * x).toPrecision(3)} %`;
const mean = xs => xs.length ? xs.reduce((a, b) => a + b, 0) / xs.length : NaN;
const digits = (x, n) => Number.isInteger(x) ? x : Number.isFinite(x) ? +x.toPrecision(n || 4) : "";
const whole = x => x.toLocaleString("en");

function shortNames(names) {
  // What all names of the layers begin with says nothing.
  const inside = names.filter(name => name.includes("*"));
  const heads = new Set(inside.map(name => name.slice(0, name.indexOf("*") + 2)));
  const head = heads.size === 1 ? [...heads][0] : "";
  return Object.fromEntries(names.map(n => [n, head && n.startsWith(head) ? n.slice(head.length) : n]));
}

function groups(records, key) {
  const found = new Map();
  for (const record of records) {
    const name = key(record);
    if (!found.has(name)) found.set(name, []);
    found.get(name).push(record);
  }
  return found;
}

// --- plots ---------------------------------------------------------------------------------------

const plots = [];

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function axis(title, more) {
  const line = colour("--line");
  const own = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true };
  return { title: { text: title, standoff: 8 }, ...own, ...more };
}

function plot(parent, height, draw) {
  const place = element("div", { className: "plot" });
  place.style.height = `${height}px`;
  parent.append(place);
  const redraw = () => {
    const { traces, layout } = draw(place.clientWidth < 600);
    const clear = "rgba(0,0,0,0)";
    const base = {
      paper_bgcolor: clear, plot_bgcolor: clear, font: { color: colour("--text"), size: 12 },
      margin: { l: 56, r: 16, t: 16, b: 48 }, hovermode: "closest", height,
      hoverlabel: { font: { size: 12 } },
    };
    Plotly.react(place, traces, { ...base, ...layout }, { responsive: true, displayModeBar: false });
  };
  plots.push(redraw);
  redraw();
  return redraw;
}

const below = narrow => ({ orientation: "h", y: narrow ? -0.28 : -0.2, x: 0 });

function layerColour(layer, layers) {
  // From blue to orange over the layers.
  const t = layers > 1 ? layer / (layers - 1) : 0;
  return `hsl(${215 - 190 * t}, 65%, ${50 + 6 * Math.sin(Math.PI * t)}%)`;
}

// --- sections ------------------------------------------------------------------------------------

function facts() {
  const values = D.matrices.reduce((n, m) => n + m.shape[0] * m.shape[1], 0);
  const kinds = new Set(D.matrices.map(m => m.kind)).size;
  let text = `${whole(D.matrices.length)} matrices of ${kinds} kinds, ${whole(values)} values`;
  const inexact = D.matrices.filter(m => !m.spectrum.exact).length;
  if (inexact) text += `; of ${whole(inexact)} large ones the leading singular values, the others bounded`;
  if (D.failures.length) text += `; ${whole(D.failures.length)} could not be looked at (below)`;
  document.getElementById("facts").textContent = `${text}.`;
}

function methods() {
  if (!D.methods.length) return;
  const here = section(
    "Which method can hold this update",
    "How much of the energy of the update inside the layers the best adapter of each method and size " +
    "holds. Higher with fewer bytes is better. It says what a method can express, not how well it trains."
  );
  const row = element("div", { className: "choices" });
  here.append(row);
  let redraw;
  const by = choice(row, "by", [["bytes", "bytes of the file"], ["params", "trained parameters"]], () => redraw());
  redraw = plot(here, 420, narrow => ({
    traces: D.methods.map((method, k) => ({
      x: method.points.map(p => p[by.value]), y: method.points.map(p => p.kept),
      text: method.points.map(p => p.setting), name: method.name, mode: "lines+markers",
      line: { color: COLOURS[k % COLOURS.length], dash: DASHES[k % DASHES.length] },
      hovertemplate: `${method.name} %{text}<br>%{x:,} ${by.value}<br>%{y:.1%} of the energy<extra></extra>`,
    })),
    layout: {
      xaxis: axis(by.value === "bytes" ? "bytes" : "parameters", { type: "log" }),
      yaxis: axis("share of the update's energy", { tickformat: ".0%", rangemode: "tozero" }),
      legend: below(narrow), margin: { l: 56, r: 16, t: 16, b: narrow ? 110 : 80 },
    },
  }));
}

const METRICS = () => {
  const last = D.budgets.length - 1;
  const found = [
    ["stable", "stable rank, of the largest possible", m => m.stable_rank / m.rank_limit],
    ["effective", "effective rank, of the largest possible", m => mean(m.effective_rank) / m.rank_limit],
    ["best", `least error with ${percent(D.budgets[last])} of the values`, m => m.best[last] ? m.best[last].error : 1],
    ["alpha", "exponent of the power law", m => m.power_law ? m.power_law.alpha : NaN],
    ["norm", "norm for each value, root mean square", m => m.norm / Math.sqrt(m.shape[0] * m.shape[1])],
  ];
  if (D.update) found.unshift(["change", "norm of the change, of the weight's", m => m.base_norm ? m.norm / m.base_norm : NaN]);
  return found;
};

function heatMap(short) {
  const inLayers = D.matrices.filter(m => m.layer !== null);
  if (!inLayers.length) return;
  const here = section("Layers and kinds", "One cell is the matrix of a kind in a layer; of experts their mean.");
  const row = element("div", { className: "choices" });
  here.append(row);
  let redraw;
  const metrics = METRICS();
  const shown = choice(row, "show", metrics.map(([value, text]) => [value, text]), () => redraw());
  const kinds = [...new Set(inLayers.map(m => m.kind))].reverse();
  const layers = [...new Set(inLayers.map(m => m.layer))].sort((a, b) => a - b);
  const cells = groups(inLayers, m => `${m.layer} ${m.kind}`);
  const height = Math.max(220, 90 + 26 * kinds.length);
  redraw = plot(here, height, narrow => {
    const value = metrics.find(([name]) => name === shown.value)[2];
    const z = kinds.map(kind => layers.map(layer => {
      const found = (cells.get(`${layer} ${kind}`) || []).map(value).filter(Number.isFinite);
      return found.length ? mean(found) : null;
    }));
    return {
      traces: [{
        type: "heatmap", x: layers, y: kinds.map(kind => short[kind]), z, colorscale: "Viridis", xgap: 1, ygap: 1,
        hovertemplate: "layer %{x}, %{y}<br>%{z:.4~g}<extra></extra>",
        colorbar: { thickness: 12, outlinewidth: 0, len: 1 },
      }],
      layout: {
        xaxis: axis("layer", { showgrid: false }),
        yaxis: axis("", { showgrid: false, tickfont: { size: narrow ? 9 : 12 } }),
      },
    };
  });
}

function kindOptions(short) {
  // Those of the layers first.
  const kinds = [...groups(D.matrices, m => m.kind).keys()];
  const inside = kind => kind.includes("*") ? 0 : 1;
  return kinds.sort((a, b) => inside(a) - inside(b)).map(kind => [kind, short[kind]]);
}

function lines(matrices, make) {
  const numbers = matrices.map(m => m.layer === null ? 0 : m.layer);
  const layers = Math.max(...numbers) + 1;
  const step = Math.ceil(matrices.length / 64);
  return matrices.filter((_, k) => k % step === 0).map(m => ({
    mode: "lines", name: m.name, showlegend: false,
    line: { color: layerColour(m.layer === null ? 0 : m.layer, layers), width: 1.4 }, ...make(m),
  }));
}

function spectra(short) {
  const here = section("Spectra", "Singular values of every matrix of a kind, over the largest. Blue is the first layer, orange the last.");
  const row = element("div", { className: "choices" });
  here.append(row);
  let redraw;
  const kind = choice(row, "kind", kindOptions(short), () => redraw());
  const scale = choice(row, "position", [["log", "logarithmic"], ["linear", "linear"]], () => redraw());
  redraw = plot(here, 400, () => ({
    traces: lines(D.matrices.filter(m => m.kind === kind.value && m.norm), m => ({
      x: m.spectrum.positions, y: m.spectrum.values.map(v => v / m.spectral_norm),
      hovertemplate: `${m.name}<br>number %{x}: %{y:.3~g} of ${digits(m.spectral_norm)}<extra></extra>`,
    })),
    layout: {
      xaxis: axis("number of the singular value", { type: scale.value, nticks: 8 }),
      yaxis: axis("singular value, over the largest", { type: "log", dtick: 1, exponentformat: "power" }),
    },
  }));
}

function formats(m) {
  return [{ shape: "low rank", params: m.low_rank.params, error: m.low_rank.error, ranks: m.low_rank.ranks }, ...m.formats];
}

function best(m) {
  // The least error that any format has with at most so many values.
  const points = formats(m).flatMap(f => f.params.map((p, k) => ({ p, e: f.error[k], f: f.shape })));
  points.sort((a, b) => a.p - b.p);
  const found = { params: [], error: [], text: [] };
  let least = Infinity;
  for (const { p, e, f } of points) {
    if (e < least) { least = e; found.params.push(p); found.error.push(e); found.text.push(f); }
  }
  return found;
}

function errors(short) {
  const here = section(
    "Error against size",
    "The relative error of every matrix of a kind with a share of its values: for low rank as it is, for " +
    "operators (mpo) and trains (tt) of several bonds an estimate between two bounds, which a point shows."
  );
  const row = element("div", { className: "choices" });
  here.append(row);
  let redraw;
  const kind = choice(row, "kind", kindOptions(short), () => redraw());
  const names = [...new Set(D.matrices.flatMap(m => formats(m).map(f => f.shape)))];
  const format = choice(row, "format", [["best", "the best of all"], ...names.map(n => [n, n])], () => redraw());
  redraw = plot(here, 400, () => ({
    traces: lines(D.matrices.filter(m => m.kind === kind.value && m.norm), m => {
      const found = format.value === "best" ? best(m) : formats(m).find(f => f.shape === format.value);
      const size = m.shape[0] * m.shape[1];
      if (!found) return { x: [], y: [] };
      const bounds = k => found.low ? `, from ${digits(found.low[k], 3)} to ${digits(found.high[k], 3)}` : "";
      const text = found.text || found.ranks.map((r, k) => `ranks ${[r].flat().join(" ")}${bounds(k)}`);
      return {
        x: found.params.map(p => p / size), y: found.error, text,
        hovertemplate: `${m.name}<br>%{text}<br>%{x:.2%} of the values, error %{y:.3~g}<extra></extra>`,
      };
    }),
    layout: {
      xaxis: axis("share of the values", { type: "log", tickformat: ".2~p", nticks: 8 }),
      yaxis: axis("relative error", { rangemode: "tozero" }),
    },
  }));
}

function separate(stack) {
  // Truncated SVDs of equal rank of every matrix of a stack.
  const found = stack.matrices.map(name => D.matrices.find(m => m.name === name)).filter(Boolean);
  if (found.length < stack.matrices.length || !stack.norm) return null;
  const common = found.map(m => new Map(m.low_rank.ranks.map((r, k) => [r, m.low_rank.error[k]])));
  const ranks = [...common[0].keys()].filter(r => common.every(c => c.has(r)));
  return {
    params: ranks.map(r => r * found.length * (stack.shape[0] + stack.shape[1])),
    error: ranks.map(r => Math.sqrt(found.reduce((e, m, k) => e + (common[k].get(r) * m.norm) ** 2, 0)) / stack.norm),
    ranks,
  };
}

function sharing(short) {
  const stacks = D.stacks.filter(s => s.tucker);
  if (!stacks.length) return;
  const here = section(
    "What layers and experts have in common",
    "Matrices of one kind as one tensor: with two factors shared by all and a small core for each (Tucker, what LoTR " +
    "does), as a sum of terms (CP, what LoRTA does), and each by itself (truncated SVDs of equal rank). Where the " +
    "first two lie below the last, factors in common pay."
  );
  const row = element("div", { className: "choices" });
  here.append(row);
  let redraw;
  const name = s => short[s.kind] && s.over === "layers" ? short[s.kind] : s.name;
  const shown = choice(row, "stack", stacks.map((s, k) => [String(k), `${name(s)} over ${s.matrices.length} ${s.over}`]), () => redraw());
  redraw = plot(here, 400, narrow => {
    const stack = stacks[Number(shown.value)];
    const size = stack.matrices.length * stack.shape[0] * stack.shape[1];
    const curves = [
      ["shared factors (Tucker)", stack.tucker.params, stack.tucker.error, stack.tucker.ranks],
      ["shared terms (CP)", stack.cp.params, stack.cp.error, stack.cp.terms],
    ];
    const own = separate(stack);
    if (own) curves.push(["each by itself (SVD)", own.params, own.error, own.ranks]);
    return {
      traces: curves.map(([title, params, error, ranks], k) => ({
        x: params.map(p => p / size), y: error, name: title, mode: "lines+markers", text: ranks,
        line: { color: COLOURS[k], dash: DASHES[k] },
        hovertemplate: `${title}, %{text}<br>%{x:.2~%} of the values, error %{y:.3~g}<extra></extra>`,
      })),
      layout: {
        xaxis: axis("share of the stack's values", { type: "log", tickformat: ".2~p", nticks: 8 }),
        yaxis: axis("relative error of the stack", {}), legend: below(narrow),
        margin: { l: 56, r: 16, t: 16, b: narrow ? 110 : 80 },
      },
    };
  });
}

function table() {
  const last = D.budgets.length - 1;
  // Where a curve ends before the budget, the error at the budget is lower still.
  const bounded = (x, m) => {
    const size = m.shape[0] * m.shape[1], step = m.shape[0] + m.shape[1];
    const ends = !m.spectrum.exact && m.low_rank.params.at(-1) + step <= D.budgets[last] * size;
    return `${ends ? "<" : ""}${x.toFixed(3)}`;
  };
  const columns = [
    ["matrix", m => m.name], ["rows", m => m.shape[0]], ["columns", m => m.shape[1]], ["norm", m => m.norm],
  ];
  if (D.update) columns.push(["of the weight", m => m.base_norm ? m.norm / m.base_norm : NaN, percent]);
  columns.push(
    ["stable rank", m => m.stable_rank],
    ["effective rank", m => mean(m.effective_rank)],
    ["alpha", m => m.power_law ? m.power_law.alpha : NaN, x => x.toFixed(2)],
    [`low rank at ${percent(D.budgets[last])}`, m => m.low_rank.error.at(-1) ?? 1, bounded],
    [`best at ${percent(D.budgets[last])}`, m => m.best[last] ? m.best[last].error : 1, bounded],
    ["with", m => m.best[last] ? m.best[last].format : "dense"],
    [`rank for ${digits(D.eps[0])}`, m => m.least[0].rank ?? NaN],
  );
  const here = section("All matrices", "Click on a heading to sort.");
  const row = element("div", { className: "choices" });
  here.append(row);
  const filter = element("input", { type: "search", placeholder: "part of a name", oninput: () => fill() });
  row.append(element("label", {}, "show", filter), element("span", { id: "count" }));
  const body = element("tbody");
  let by = null, up = true;
  const head = element("tr", {}, ...columns.map(([title], k) => element("th", {}, element("button", {
    type: "button", textContent: title, onclick: () => { up = by === k ? !up : true; by = k; fill(); },
  }))));
  here.append(element("div", { className: "wide", id: "rows" }, element("table", {}, element("thead", {}, head), body)));
  function fill() {
    const found = D.matrices.filter(m => m.name.includes(filter.value));
    if (by !== null) {
      const value = columns[by][1];
      const order = (a, b) => typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : (Number.isNaN(a) ? 1 : Number.isNaN(b) ? -1 : a - b);
      found.sort((a, b) => (up ? 1 : -1) * order(value(a), value(b)));
    }
    body.replaceChildren(...found.slice(0, SHOWN_ROWS).map(m => element("tr", {}, ...columns.map(([, value, shown]) => {
      const v = value(m);
      const text = typeof v === "string" ? v : Number.isFinite(v) ? String(shown ? shown(v, m) : digits(v)) : "";
      return element("td", { textContent: text });
    }))));
    document.getElementById("count").textContent =
      found.length > SHOWN_ROWS ? `the first ${SHOWN_ROWS} of ${whole(found.length)}` : `${whole(found.length)} of ${whole(D.matrices.length)}`;
  }
  fill();
}

function failures() {
  if (D.failures.length) {
    const here = section("What could not be looked at");
    here.append(element("ul", {}, ...D.failures.map(f => element("li", { textContent: `${f.name}: ${f.reason}` }))));
  }
  if (D.notes.length) {
    section("Of note").append(element("ul", {}, ...D.notes.map(note => element("li", { textContent: note }))));
  }
  const options = Object.entries(D.options).map(([key, value]) => `${key} ${[value].flat().join(", ")}`);
  section("How it was made").append(element("p", { textContent: options.join("; ") }));
}

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  plots.forEach(redraw => redraw());
}

async function main() {
  const wish = matchMedia("(prefers-color-scheme: dark)");
  setTheme(wish.matches ? "dark" : "light");
  wish.addEventListener("change", () => setTheme(wish.matches ? "dark" : "light"));
  document.getElementById("theme").onclick =
    () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  D = JSON.parse(await unpacked("data"));
  document.head.append(element("script", { textContent: await unpacked("library") }));
  const short = shortNames([...new Set(D.matrices.map(m => m.kind))]);
  facts();
  for (const draw of [methods, heatMap, spectra, errors, sharing, table, failures]) draw(short);
  document.body.dataset.ready = "yes";
}

main().catch(error => {
  document.getElementById("facts").textContent = `The report cannot be shown in this browser: ${error.message}`;
});
