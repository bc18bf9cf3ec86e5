// The report: everything is built from the page's data, and foreign text is set as text alone.
const report = pageData();
const byId = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== undefined) made.setAttribute(name, value);
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}
function drawn(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}
const colour = (run) => `var(--c${run % 8})`;
const counted = (number, word, plural) => `${whole(number)} ${number === 1 ? word : plural}`;
const measuredImages = (kinds) => [...new Set(kinds)].sort().join(" or ");
const several = report.runs.length > 1;
const whole = (number) => Math.round(number).toLocaleString("en-US");
const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.01 ? 2 : 1)}%`;
function short(value) {
  const size = Math.abs(value);
  if (size >= 1e4) return value.toLocaleString("en-US", { maximumFractionDigits: 0 });
  if (size && size < 1e-3) return value.toExponential(2);
  return String(Number(value.toPrecision(4)));
}

// Verdicts
const measuredAt = (run, step) => typeof step === "number" && step !== run.step ? `measured at step ${whole(step)}` : "";
byId("title").textContent = several ? `Report of ${report.runs.length} runs` : `Report: ${report.runs[0].name}`;
byId("runs").classList.toggle("several", several);
report.runs.forEach((run, number) => {
  const seconds = run.total_seconds;
  const hours = seconds >= 3600 ? `${(seconds / 3600).toFixed(1)} h` : seconds >= 60 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds)} s`;
  const epochs = typeof run.epoch === "number" ? `, ${run.epoch.toFixed(2)} epochs` : "";
  const elsewhere = measuredAt(run, run.measured_step);
  const said = `${run.state}, step ${whole(run.step)}${epochs}${seconds ? `, ${hours}` : ""}${elsewhere && `, ${elsewhere}`}`;
  const swatch = several ? element("i", { class: "swatch", style: `background:${colour(number)}` }) : null;
  const heading = element("h2", {}, element("span", {}, swatch, run.name), element("span", { class: "soft" }, `${run.verdict.heading} · ${said}`));
  const figures = element("ul", { class: "figures" }, ...run.figures.slice(0, 8).map((figure) =>
    element("li", {}, element("b", {}, figure.text), element("span", {}, figure.title))));
  const facts = element("dl", { class: "facts" });
  for (const [name, text] of Object.entries({ ...run.facts, folder: run.path })) facts.append(element("dt", {}, name), element("dd", {}, text));
  byId("runs").append(element("article", { class: `run ${run.verdict.grade}` }, heading,
    element("p", { class: "verdict" }, run.verdict.text), figures, facts));
});

// Settings that differ
if (several && report.differing.length) {
  byId("differing").hidden = false;
  const head = element("tr", {}, element("th", {}, "setting"), ...report.runs.map((run, number) =>
    element("th", {}, element("i", { class: "swatch", style: `background:${colour(number)}` }), run.name)));
  byId("differing-table").append(element("thead", {}, head), element("tbody", {}, ...report.differing.map((row) =>
    element("tr", {}, element("th", { scope: "row" }, row.name.replaceAll("_", " ")), ...row.values.map((value) => element("td", { class: "name" }, value))))));
}

// Curves
const ROLES = { training: { width: 1.4, dash: "", opacity: 0.75 }, "held-out": { width: 2.4, dash: "", opacity: 1 }, baseline: { width: 1.6, dash: "5 4", opacity: 0.9 } };
const FEW = 12, LEAST_SPAN = 0.1; // points of a line; span of an axis as a share of the largest value
const WHISKERS = 60; // of a line at most; more of them would be a smear
const charts = [];
const isLoss = (name) => name.includes("loss");
const seriesColour = (line) => several ? colour(line.run) : line.role === "training" ? "var(--c0)" : line.role === "held-out" ? "var(--c1)" : "var(--c6)";

function smoothed(points, weight) {
  if (!weight) return points;
  let mean = 0, norm = 0;
  return points.map(([step, value]) => {
    mean = weight * mean + (1 - weight) * value;
    norm = weight * norm + (1 - weight);
    return [step, mean / norm];
  });
}
// Round numbers between two others, and the step between them; however the two lie, they come to an end.
function ticks(low, high, count) {
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((each) => each >= raw);
  const found = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9 && found.length < 50; n++) found.push(n ? n * step : 0);
  return [found, step];
}

const whisker = (x, from, to) => `M${x - 4} ${from}H${x + 4}M${x} ${from}V${to}M${x - 4} ${to}H${x + 4}`;

class Chart {
  constructor(data, place) {
    this.data = data;
    this.text = data.share ? percent : short;
    this.cursor = null;
    this.svg = drawn("svg", { role: "img", tabindex: "0", "aria-label": `Curve of ${data.title}; arrow keys read it step by step` });
    this.readout = element("div", { class: "readout", "aria-live": "polite" });
    place.append(element("figure", { class: "chart" }, element("figcaption", {}, data.title), this.svg, this.readout));
    this.steps = [...new Set(data.series.flatMap((line) => line.points.map((point) => point[0])))].sort((a, b) => a - b);
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerdown", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => { if (document.activeElement !== this.svg) this.read(null); });
    this.svg.addEventListener("blur", () => this.read(null));
    this.svg.addEventListener("keydown", (event) => this.key(event));
    this.draw();
  }
  draw() {
    const width = Math.max(260, this.svg.clientWidth || 480), height = 256;
    const log = byId("log").checked && isLoss(this.data.name);
    const weight = Number(byId("smooth").value);
    this.lines = this.data.series.map((line) => ({ ...line, points: line.role === "training" ? smoothed(line.points, weight) : line.points }));
    const spans = this.lines.flatMap((line) => (line.spans ?? []).flatMap(([, from, to]) => [from, to]));
    const values = [...this.lines.flatMap((line) => line.points.map((point) => point[1])), ...spans].filter((value) => !log || value > 0);
    const scale = log ? Math.log10 : (value) => value;
    let low = scale(Math.min(...values)), high = scale(Math.max(...values));
    const size = Math.max(Math.abs(low), Math.abs(high));
    if (high - low <= 1e-9 * Math.max(size, log ? 1 : 0)) { // a constant, but for rounding
      const half = log ? 0.5 : 0.1 * size || 1;
      low -= half; high += half;
    }
    const lacking = LEAST_SPAN * size - (high - low); // a small difference of few points is not to look like a large one
    if (!log && !spans.length && lacking > 0 && this.lines.every((line) => line.points.length <= FEW)) { low -= lacking / 2; high += lacking / 2; }
    const pad = 0.06 * (high - low);
    if (!log && low >= 0 && low < 0.35 * high) low = 0; else low -= pad;
    high += pad;
    const last = Math.max(...this.steps, 1); // of an axis from 0
    const left = 56, right = width - 12, top = 10, bottom = height - 26;
    this.x = (step) => left + (right - left) * step / last;
    this.y = (value) => bottom - (bottom - top) * (scale(value) - low) / (high - low);
    this.area = { left, right, top, bottom, last };
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.replaceChildren();
    const [levels, step] = ticks(low, high, 5);
    const places = Math.max(0, -Math.floor(Math.log10(100 * step) + 1e-9));
    for (const at of levels) {
      const y = bottom - (bottom - top) * (at - low) / (high - low);
      this.svg.append(drawn("line", { class: "grid", x1: left, x2: right, y1: y, y2: y }));
      const text = drawn("text", { x: left - 8, y: y + 4, "text-anchor": "end" });
      text.textContent = this.data.share ? `${(100 * at).toFixed(places)}%` : short(log ? 10 ** at : at);
      this.svg.append(text);
    }
    for (const at of ticks(0, last, Math.max(3, Math.floor(width / 110)))[0]) {
      if (!Number.isInteger(at)) continue;
      const x = this.x(at);
      const text = drawn("text", { x, y: height - 8, "text-anchor": x > right - 20 ? "end" : "middle" });
      text.textContent = whole(at);
      this.svg.append(text);
    }
    const order = { baseline: 0, training: 1, "held-out": 2 };
    for (const line of [...this.lines].sort((a, b) => order[a.role] - order[b.role])) {
      const points = line.points.filter((point) => !log || point[1] > 0);
      const style = ROLES[line.role];
      const at = points.map(([step, value]) => `${this.x(step).toFixed(1)},${this.y(value).toFixed(1)}`);
      this.svg.append(drawn("polyline", { points: at.join(" "), fill: "none", stroke: seriesColour(line), "stroke-width": style.width,
        "stroke-dasharray": style.dash, opacity: several && line.role === "training" ? 0.4 : style.opacity, "stroke-linejoin": "round" }));
      const every = Math.ceil((line.spans ?? []).length / WHISKERS);
      (line.spans ?? []).forEach(([step, from, to], number) => {
        if (number % every || (log && from <= 0)) return;
        this.svg.append(drawn("path", { class: "whisker", d: whisker(this.x(step), this.y(from), this.y(to)), stroke: seriesColour(line) }));
      });
      if (line.role === "held-out" || points.length === 1) for (const [step, value] of points)
        this.svg.append(drawn("circle", { cx: this.x(step), cy: this.y(value), r: points.length > 40 ? 1.5 : 3, fill: seriesColour(line) }));
    }
    this.mark = drawn("line", { class: "cursor", y1: top, y2: bottom, visibility: "hidden" });
    this.svg.append(this.mark);
    this.read(this.cursor);
  }
  point(event) {
    const box = this.svg.getBoundingClientRect();
    const { left, right, last } = this.area;
    const inside = (event.clientX - box.left) * this.svg.viewBox.baseVal.width / box.width;
    const step = last * (inside - left) / (right - left);
    this.read(this.steps.reduce((best, each) => Math.abs(each - step) < Math.abs(best - step) ? each : best, this.steps[0]));
  }
  key(event) {
    const moves = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity };
    if (!(event.key in moves)) return;
    event.preventDefault();
    const now = this.cursor === null ? this.steps.length - 1 : this.steps.indexOf(this.cursor) + moves[event.key];
    this.read(this.steps[Math.min(this.steps.length - 1, Math.max(0, now))]);
  }
  read(step) {
    this.cursor = step;
    this.mark.setAttribute("visibility", step === null ? "hidden" : "visible");
    const at = step === null ? this.area.last : step;
    if (step !== null) for (const end of ["x1", "x2"]) this.mark.setAttribute(end, this.x(step));
    const swatch = (line) => element("i", { class: "swatch", style: `background:${seriesColour(line)}` });
    const said = (line) => {
      const known = line.points.filter((point) => point[0] <= at);
      if (!known.length) return null;
      const [where, value] = known[known.length - 1];
      const from = where !== at ? ` (step ${whole(where)})` : "";
      const span = (line.spans ?? []).find((each) => each[0] === where);
      const range = span ? ` (95%: ${this.text(span[1])} to ${this.text(span[2])})` : "";
      return element("span", {}, several ? null : swatch(line), `${line.label} `, element("b", {}, this.text(value)), range, from);
    };
    const rows = several ? report.runs.map((run, number) => {
      const own = this.lines.filter((line) => line.run === number).map(said).filter(Boolean);
      return own.length ? element("div", {}, element("span", {}, swatch({ run: number }), run.name), ...own) : null;
    }) : this.lines.map(said);
    this.readout.replaceChildren(element("span", {}, `step ${whole(at)}`), ...rows.filter(Boolean));
  }
}

if (report.charts.length) {
  byId("curves").hidden = false;
  const key = report.charts.filter((chart) => chart.key), rest = report.charts.filter((chart) => !chart.key);
  const legend = (label, stroke, role) => {
    const sample = drawn("svg", { width: 26, height: 10, "aria-hidden": "true" });
    sample.append(drawn("line", { x1: 0, x2: 26, y1: 5, y2: 5, stroke, "stroke-width": ROLES[role].width, "stroke-dasharray": ROLES[role].dash }));
    if (role === "held-out") sample.append(drawn("circle", { cx: 13, cy: 5, r: 3, fill: stroke }));
    byId("legend").append(element("li", {}, sample, label));
  };
  if (several) report.runs.forEach((run, number) => legend(run.name, colour(number), "training"));
  for (const role of ["training", "held-out", "baseline"]) {
    const words = { training: "training", "held-out": `${measuredImages(report.runs.map((run) => run.measured_images))}, measured at checkpoints`, baseline: "a guess that ignores the image" };
    if (report.charts.some((chart) => chart.series.some((line) => line.role === role)))
      legend(words[role], several ? "var(--soft)" : seriesColour({ role }), role);
  }
  if (report.charts.some((chart) => chart.series.some((line) => line.spans))) {
    const sample = drawn("svg", { width: 26, height: 14, "aria-hidden": "true" });
    sample.append(drawn("path", { class: "whisker", d: whisker(13, 13, 1), stroke: several ? "var(--soft)" : seriesColour({ role: "held-out" }) }));
    byId("legend").append(element("li", {}, sample, "95% interval of one measuring"));
  }
  for (const chart of key) charts.push(new Chart(chart, byId("charts")));
  byId("more").hidden = !rest.length;
  byId("more").addEventListener("toggle", () => {
    if (byId("more").open && !byId("more-charts").childElementCount)
      for (const chart of rest) charts.push(new Chart(chart, byId("more-charts")));
  });
  const redraw = () => charts.forEach((chart) => chart.draw());
  byId("log").addEventListener("change", redraw);
  byId("smooth").addEventListener("input", () => {
    const weight = Number(byId("smooth").value);
    byId("smooth-value").textContent = weight ? weight.toFixed(2) : "off";
    redraw();
  });
  let waiting = 0;
  addEventListener("resize", () => { cancelAnimationFrame(waiting); waiting = requestAnimationFrame(redraw); });
}

// Previews over training: one slider, each run shows its newest preview up to that step
const LEGIBLE = 880; // pixels of a preview
const strips = report.previews.filter((strip) => strip.pictures.length);
const stepsDrawn = [...new Set(strips.flatMap((strip) => strip.pictures.map((picture) => picture.step)))].sort((a, b) => a - b);
if (stepsDrawn.length) {
  byId("previews").hidden = false;
  const images = measuredImages(strips.map((strip) => strip.images));
  byId("previews-title").textContent = `${images[0].toUpperCase()}${images.slice(1)} over training`;
  const scrub = byId("scrub");
  scrub.max = stepsDrawn.length - 1;
  scrub.value = stepsDrawn.length - 1;
  const shown = strips.map((strip) => {
    const image = element("img", { alt: "" }), caption = element("figcaption");
    byId("preview-pictures").append(element("figure", {}, caption, element("div", { class: "scroll", tabindex: "0" }, image)));
    return { strip, image, caption };
  });
  const show = () => {
    const step = stepsDrawn[Number(scrub.value)];
    byId("preview-step").textContent = `step ${whole(step)}`;
    scrub.setAttribute("aria-valuetext", `step ${whole(step)}`);
    byId("earlier").disabled = Number(scrub.value) === 0;
    byId("later").disabled = Number(scrub.value) === stepsDrawn.length - 1;
    for (const { strip, image, caption } of shown) {
      const known = strip.pictures.filter((picture) => picture.step <= step);
      const picture = known.length ? known[known.length - 1] : strip.pictures[0];
      image.src = picture.url;
      image.style.minWidth = `${Math.min(LEGIBLE, picture.width)}px`; // a narrow page scrolls it: its captions stay legible
      image.alt = `${strip.images} at step ${picture.step}`;
      caption.textContent = several ? `${strip.name}, step ${whole(picture.step)}` : strip.name ? strip.name : "";
      caption.hidden = !caption.textContent;
    }
  };
  const move = (by) => { scrub.value = Number(scrub.value) + by; show(); };
  scrub.addEventListener("input", show);
  byId("earlier").addEventListener("click", () => move(-1));
  byId("later").addEventListener("click", () => move(1));
  show();
}

// A name that is broken behind the signs that join its parts, and within a part only where that is wider than its place.
const breakable = (text) => element("span", { class: "word" }, ...text.split(/(?<=[_\/.,:-])/).flatMap((part) => [part, element("wbr")]));

// Tables that are sorted by a click on a column's head
function sortable(columns, rows) {
  const body = element("tbody"), heads = columns.map((column) => element("th", { class: column.number ? "number" : undefined, scope: "col" },
    element("button", { type: "button" }, column.title)));
  let by = null, up = true;
  const fill = () => {
    const sorted = by === null ? rows : [...rows].sort((a, b) => {
      const [x, y] = [columns[by].value(a), columns[by].value(b)];
      return (x < y ? -1 : x > y ? 1 : 0) * (up ? 1 : -1);
    });
    body.replaceChildren(...sorted.map((row) => element("tr", {}, ...columns.map((column) => {
      const cell = column.cell(row);
      return element("td", { class: column.number ? "number" : "name" }, cell);
    }))));
    heads.forEach((head, number) => { if (number === by) head.setAttribute("aria-sort", up ? "ascending" : "descending"); else head.removeAttribute("aria-sort"); });
  };
  heads.forEach((head, number) => head.firstChild.addEventListener("click", () => { up = by === number ? !up : true; by = number; fill(); }));
  fill();
  return element("table", {}, element("thead", {}, element("tr", {}, ...heads)), body);
}
const spanOf = (row) => {
  if (row.value === null) return "";
  const [low, high] = row.interval ?? [row.value, row.value];
  return element("div", { class: "span", role: "img", "aria-label": `${percent(low)} to ${percent(high)}` },
    element("i", { style: `left:${100 * low}%;width:${100 * (high - low)}%` }), element("b", { style: `left:${100 * row.value}%` }));
};

function classTable(found) {
  const has = (name) => found.rows.some((row) => row[name] !== undefined && row[name] !== null);
  const columns = [{ title: "class", value: (row) => row.class.toLowerCase(), cell: (row) => breakable(row.class) }];
  if (has("images")) columns.push({ title: "images", number: true, value: (row) => row.images, cell: (row) => whole(row.images) });
  if (has("share")) columns.push({ title: "share of pixels", number: true, value: (row) => row.share, cell: (row) => percent(row.share) });
  if (has("objects")) columns.push({ title: "objects", number: true, value: (row) => row.objects, cell: (row) => whole(row.objects) });
  columns.push({ title: found.metric, number: true, value: (row) => row.value ?? -1, cell: (row) => row.value === null ? "-" : percent(row.value) });
  columns.push({ title: has("interval") ? "95% interval" : "bar", value: (row) => row.value ?? -1, cell: spanOf });
  if (has("interval")) columns.push({ title: "from, to", number: true, value: (row) => row.interval[0], cell: (row) => `${percent(row.interval[0])}, ${percent(row.interval[1])}` });
  if (has("precision")) columns.push({ title: "precision", number: true, value: (row) => row.precision ?? -1, cell: (row) => row.precision === null ? "-" : percent(row.precision) });
  if (has("recall")) columns.push({ title: "recall", number: true, value: (row) => row.recall ?? -1, cell: (row) => row.recall === null ? "-" : percent(row.recall) });
  return sortable(columns, found.rows);
}
const TINT = 40; // percent of colour at most behind a number, which is to be read in light and dark
const rowShare = (share) => share < 0.005 ? "<1%" : `${Math.round(100 * share)}%`;
function matrixTable(matrix) {
  const head = element("tr", {}, element("th", {}, "true class \u2193 predicted \u2192"), ...matrix.classes.map((name) => element("th", { scope: "col" }, breakable(name))));
  return element("table", { class: "matrix" }, element("thead", {}, head), element("tbody", {}, ...matrix.counts.map((row, truth) => {
    const sum = row.reduce((a, b) => a + b, 0) || 1;
    return element("tr", {}, element("th", { scope: "row" }, breakable(matrix.classes[truth])), ...row.map((count, said) => {
      const strength = 4 + Math.round((TINT - 4) * count / sum);
      const tint = truth === said ? "var(--good)" : "var(--bad)";
      return element("td", { style: count ? `background:color-mix(in srgb, ${tint} ${strength}%, transparent)` : undefined,
        title: `${matrix.classes[truth]} predicted as ${matrix.classes[said]}: ${whole(count)}${matrix.of ? ` ${matrix.of}` : ""}` },
        !count ? "·" : matrix.of ? rowShare(count / sum) : whole(count));
    }));
  })));
}
function mistake(each) {
  const captioned = (caption, url) => element("figure", {}, element("img", { src: url, alt: "" }), element("figcaption", { class: "soft" }, caption));
  const share = each.probability === undefined ? "" : ` (${Math.round(100 * each.probability)}%)`;
  const boxes = each.wrong === undefined ? "" : `, ${counted(each.wrong, "wrong box", "wrong boxes")}`;
  const path = element("div", { class: "soft" }, breakable(each.path.split("/").slice(-2).join("/")));
  if (each.image) return element("li", {},
    element("div", { class: "triple" }, captioned("image", each.image), captioned("labelled", each.labelled), captioned("predicted", each.picture)),
    element("div", {}, `${percent(each.pixel_accuracy)} of its pixels right; most often `, element("b", {}, each.class), " taken for ",
      element("b", { class: "wrong" }, each.predicted), ` (${percent(each.confused)})`), path);
  return element("li", {},
    each.labelled ? element("div", { class: "pair" }, captioned("labelled", each.labelled), captioned("predicted", each.picture)) : element("img", { src: each.picture, alt: "" }),
    each.predicted === undefined ? null : element("div", {}, "predicted ", element("b", { class: "wrong" }, each.predicted), share),
    each.class === undefined ? null : element("div", {}, "actually ", element("b", {}, each.class)),
    each.pixel_accuracy === undefined ? null : element("div", {}, `${percent(each.pixel_accuracy)} of its pixels right`),
    each.objects === undefined ? null : element("div", {}, `${whole(each.hits ?? 0)} of ${counted(each.objects, "object", "objects")} found${boxes}`),
    path);
}
// The colours of the classes in the pictures: an empty patch is of a class that is not tinted.
function colourKeys(keys) {
  return element("ul", { class: "legend keys" }, ...keys.map((key) => element("li", {},
    element("i", { class: `swatch${key.hatched ? " hatched" : ""}${key.colour ? "" : " empty"}`, style: key.colour ? `background-color:${key.colour}` : undefined }),
    key.class)));
}
report.runs.forEach((run) => {
  const found = run.classes;
  if (!found.rows) return;
  const place = byId("classes");
  place.hidden = false;
  const elsewhere = measuredAt(run, run.classes_step);
  place.append(element("h2", {}, `Classes${several ? `: ${run.name}` : ""}${elsewhere && `, ${elsewhere}`}`));
  if (found.note) place.append(element("p", { class: "soft" }, found.note));
  const columns = element("div", { class: "columns" }, element("div", {}, element("div", { class: "scroll tall" }, classTable(found))));
  const beside = element("div");
  if (found.matrix) beside.append(element("h3", {}, found.matrix.of ? "Confusions, shares of the true class's pixels" : "Confusions"), element("div", { class: "scroll" }, matrixTable(found.matrix)));
  if (found.pairs && found.pairs.length && !found.matrix) beside.append(element("h3", {}, "Most confused"), element("div", { class: "scroll tall" }, sortable([
    { title: "class", value: (row) => row[0], cell: (row) => breakable(row[0]) }, { title: "predicted", value: (row) => row[1], cell: (row) => breakable(row[1]) },
    { title: found.metric === "IoU" ? "pixels" : "images", number: true, value: (row) => row[2], cell: (row) => whole(row[2]) },
    { title: "of the class", number: true, value: (row) => row[2] / (row[3] || 1), cell: (row) => percent(row[2] / (row[3] || 1)) }], found.pairs)));
  if (beside.childElementCount) columns.append(beside);
  place.append(columns);
  if (found.worst && found.worst.length) place.append(element("h3", {}, "Worst mistakes"),
    ...(found.worst_note ? [element("p", { class: "soft" }, found.worst_note)] : []), ...(found.legend ? [colourKeys(found.legend)] : []),
    element("ul", { class: found.worst[0].labelled ? "worst pairs" : "worst" }, ...found.worst.map(mistake)));
});

// What of a table or a picture lies beyond its edge is told beside it, and fades out there
function watchEdges(box) {
  const hint = element("p", { class: "soft hint" });
  if (box.querySelector("img")) box.before(hint); // a picture is long
  else box.after(hint);
  const tell = () => {
    const frame = box.getBoundingClientRect();
    const beyond = (selector, end) => [...box.querySelectorAll(selector)].filter((each) => end(each.getBoundingClientRect())).length;
    const rows = beyond("tbody tr", (each) => each.bottom > frame.top + box.clientHeight + 1);
    const columns = beyond("thead th", (each) => each.right > frame.left + box.clientWidth + 1);
    const pictures = beyond("img", (each) => each.right > frame.left + box.clientWidth + 1);
    box.classList.toggle("more-below", rows > 0);
    box.classList.toggle("more-right", columns + pictures > 0);
    if (rows || columns || pictures) box.tabIndex = 0;
    hint.textContent = [rows ? `${counted(rows, "more row", "more rows")} below` : "",
      columns ? `${counted(columns, "more column", "more columns")} to the right` : "",
      pictures ? "the pictures go on to the right" : ""].filter(Boolean).join(", ");
    hint.hidden = box.scrollHeight <= box.clientHeight + 1 && box.scrollWidth <= box.clientWidth + 1;
  };
  box.addEventListener("scroll", tell, { passive: true });
  const watcher = new ResizeObserver(tell);
  watcher.observe(box);
  for (const inner of box.children) watcher.observe(inner);
}
document.querySelectorAll(".scroll").forEach(watchEdges);

// Unreadable images, next commands
const withBad = report.runs.filter((run) => run.bad.count);
if (withBad.length) {
  byId("bad").hidden = false;
  byId("bad").append(element("h2", {}, "Unreadable images"));
  for (const run of withBad) byId("bad").append(
    element("p", {}, `${several ? `${run.name}: ` : ""}${whole(run.bad.count)} could not be read${run.bad.count > run.bad.named.length ? `, the first ${run.bad.named.length}` : ""}:`),
    element("ul", { class: "badlist" }, ...run.bad.named.map(([path, reason]) => element("li", {}, element("code", {}, path), ` ${reason}`))));
}
const told = new Set();
for (const run of report.runs) {
  const commands = run.next.filter((command) => !told.has(command));
  if (!commands.length) continue;
  if (!told.size) byId("next").append(element("h2", {}, "Next"));
  byId("next").hidden = false;
  if (several) byId("next").append(element("h3", {}, run.name));
  for (const command of commands) {
    told.add(command);
    const button = element("button", { type: "button", "aria-label": "Copy the command" }, "Copy");
    copiesOnClick(button, () => command);
    byId("next").append(element("div", { class: "command" }, element("code", {}, command), button));
    if (command in run.next_notes) byId("next").append(element("p", { class: "soft" }, run.next_notes[command]));
  }
}
