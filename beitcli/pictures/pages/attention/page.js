// The attention explorer. A query is 0 for the class token and 1 + n for patch n, as in the model's sequence.
const data = pageData();
const [rows, columns] = data.grid, patches = rows * columns, tokens = patches + 1;
const palette = bytesOf(data.palette);
const part = (id) => document.getElementById(id);
const stage = part("stage");
const names = ["mean", "rollout", ...Array(data.heads).keys()].map(String);
const state = { image: 0, layer: data.start.layer, map: data.start.head, query: 1, pinned: false, target: null,
  share: data.start.share, opacity: 0.65, smooth: data.start.smooth, grey: true, grid: false };

// ---- The maps: decoded once for each layer of an image -------------------------------------------------------------

const decoded = new Map();
function unpack(packed) {
  const bytes = bytesOf(packed.weights), steps = packed.bits === 8 ? 255 : 65535;
  const weights = packed.bits === 8 ? bytes : new Uint16Array(bytes.buffer);
  const most = new Float32Array(bytesOf(packed.most).buffer), cls = new Float32Array(bytesOf(packed.cls).buffer);
  return Array.from({ length: most.length / tokens }, (_, number) => ({
    steps, most: most.subarray(number * tokens), cls: cls.subarray(number * tokens),
    weights: weights.subarray(number * tokens * patches, (number + 1) * tokens * patches) }));
}
function mapsOf(layer) {
  const key = `${state.image}/${layer}`;
  if (!decoded.has(key)) {
    const stored = data.images[state.image].layers[layer], maps = {};
    [maps.mean] = unpack(stored.mean);
    [maps.rollout] = unpack(stored.rollout);
    if (stored.heads) unpack(stored.heads).forEach((map, head) => { maps[head] = map; });
    decoded.set(key, maps);
  }
  return decoded.get(key);
}
// The attention of the query: relative to its strongest patch, that patch's attention, and that to the class token.
function rowOf(name) {
  const map = mapsOf(state.layer)[name];
  if (!map) return null;
  const weights = map.weights.subarray(state.query * patches, (state.query + 1) * patches);
  return { weights, steps: map.steps, most: map.most[state.query], cls: map.cls[state.query] };
}

// ---- Drawing -------------------------------------------------------------------------------------------------------

// The fewest patches that hold the share, as in the pictures of `beit attn-map --threshold`.
function keptOf(weights) {
  if (state.share >= 1) return null;
  const order = Array.from(weights.keys()).sort((a, b) => weights[b] - weights[a] || a - b);
  const kept = new Uint8Array(patches), total = weights.reduce((sum, weight) => sum + weight, 0);
  let before = 0;
  for (const patch of order) {
    if (before >= (state.share - 1e-9) * total || weights[patch] === 0) break;
    kept[patch] = 1;
    before += weights[patch];
  }
  return kept;
}
const opacityOf = (relative, kept) => (kept ? 0.6 + 0.4 * relative : 0.15 + 0.85 * relative);

// Catmull-Rom weights from `from` values to `to` pixels along a side; what lies beyond the edge has no weight.
const taps = (from, to) => Array.from({ length: to }, (_, pixel) => {
  const centre = (pixel + 0.5) * from / to - 0.5, first = Math.floor(centre) - 1, found = [];
  for (let index = Math.max(0, first); index <= Math.min(from - 1, first + 3); index++) {
    const x = Math.abs(index - centre);
    found.push([index, x < 1 ? (1.5 * x - 2.5) * x * x + 1 : ((2.5 - 0.5 * x) * x - 4) * x + 2]);
  }
  const sum = found.reduce((total, [, weight]) => total + weight, 0);
  return found.map(([index, weight]) => [index, weight / sum]);
});
const tapsOf = new Map();
function enlarged(values, times) {
  if (!tapsOf.has(times)) tapsOf.set(times, [taps(columns, columns * times), taps(rows, rows * times)]);
  const [across, down] = tapsOf.get(times), width = columns * times;
  const wide = new Float32Array(rows * width), all = new Float32Array(rows * times * width);
  for (let row = 0; row < rows; row++)
    for (let x = 0; x < width; x++)
      for (const [index, weight] of across[x]) wide[row * width + x] += weight * values[row * columns + index];
  down.forEach((found, y) => {
    for (const [index, weight] of found)
      for (let x = 0; x < width; x++) all[y * width + x] += weight * wide[index * width + x];
  });
  return all;
}

// Paints a map; `times` pixels a patch where it is smooth. `solid`: without the photograph beneath.
function paint(canvas, row, times, solid) {
  const kept = keptOf(row.weights), each = state.smooth ? times : 1;
  let relative = Float32Array.from(row.weights, (weight, patch) => (kept && !kept[patch] ? 0 : weight / row.steps));
  let opacity = relative.map((value, patch) => (kept && !kept[patch] ? 0 : opacityOf(value, kept)));
  if (state.smooth) [relative, opacity] = [enlarged(relative, each), enlarged(opacity, each)];
  canvas.width = columns * each;
  canvas.height = rows * each;
  const context = canvas.getContext("2d"), pixels = context.createImageData(canvas.width, canvas.height);
  const clipped = (value) => Math.min(1, Math.max(0, value)), over = solid ? 0 : 255 * state.opacity;
  for (let pixel = 0; pixel < relative.length; pixel++) {
    const colour = 3 * Math.round(255 * clipped(relative[pixel]));
    for (let channel = 0; channel < 3; channel++) pixels.data[4 * pixel + channel] = palette[colour + channel];
    pixels.data[4 * pixel + 3] = solid ? 255 : over * clipped(opacity[pixel]);
  }
  context.putImageData(pixels, 0, 0);
}

// Three digits, but none that the stored steps do not hold.
function percent(share, step = 0) {
  const digits = share > 0 ? 2 - Math.floor(Math.log10(100 * share)) : 2;
  const held = step > 0 ? Math.floor(-Math.log10(100 * step)) : 6;
  return (100 * share).toFixed(Math.max(0, Math.min(digits, held, 6))) + "%";
}

function drawScale(row) {
  const bar = part("bar"), even = 1 / patches, context = bar.getContext("2d"), pixels = context.createImageData(256, 1);
  const kept = keptOf(row.weights);
  const weakest = (low, weight, patch) => (kept[patch] ? Math.min(low, weight) : low);
  const least = kept ? row.weights.reduce(weakest, 65536) : 0;
  for (let step = 0; step < 256; step++) {
    const shown = (step / 255) * row.steps >= least;
    pixels.data.set(shown ? palette.subarray(3 * step, 3 * step + 3) : [128, 128, 128], 4 * step);
    pixels.data[4 * step + 3] = shown ? 255 : 80;
  }
  context.putImageData(pixels, 0, 0);
  part("mark").hidden = even > row.most;
  part("mark").style.left = (100 * even) / row.most + "%";
  part("even").textContent = `uniform 1/${patches} = ${percent(even)}` + (even > row.most ? ", off this scale" : "");
  part("most").textContent = `max ${percent(row.most)}`;
}

// ---- Text ----------------------------------------------------------------------------------------------------------

const placeOf = (patch) => `row ${Math.floor(patch / columns)}, column ${patch % columns}`;
// The first and the last pixel of the upright image whose centres lie in a patch, along both sides.
function pixelsOf(patch) {
  const [left, upper, right, lower] = data.images[state.image].box;
  const along = (begin, end, place, places) => [place, place + 1].map(
    (edge, last) => Math.ceil(begin + (edge / places) * (end - begin) - 0.5) - last);
  return [along(left, right, patch % columns, columns), along(upper, lower, Math.floor(patch / columns), rows)];
}
// Layers, heads, rows and columns count from 0, as the command counts them.
const layerSaid = () => `layer ${state.layer} (of 0 to ${data.depth - 1})`;
// A name for the picture of what is shown: no two views of an image share it, nor does it need quotes in a shell.
function fileName() {
  const stem = data.images[state.image].name.split("/").pop().replace(/\.[^.]*$/, ""), patch = state.query - 1;
  const from = patch < 0 ? "class-token" : `row${Math.floor(patch / columns)}-column${patch % columns}`;
  const look = (state.share < 1 ? `-${Number((100 * state.share).toFixed(2))}percent` : "") + (state.smooth ? "-smooth" : "");
  const name = `${stem}-layer${state.layer}${look}-${state.map}-${from}.png`;
  return name.replace(/[^\p{L}\p{N}_.-]+/gu, "_").replace(/^-/, "_");
}
const nameOf = (map) => (map === "mean" ? "mean of the heads" : map === "rollout" ? "rollout" : `head ${map}`);

function write(row) {
  const patch = state.query - 1, best = row.weights.indexOf(row.steps), isClass = state.query === 0;
  let from = "class token", command = "";
  if (!isClass) {
    const [x, y] = pixelsOf(patch), middle = (edges) => Math.floor((edges[0] + edges[1]) / 2);
    from = `${placeOf(patch)} (pixels x ${x.join("–")}, y ${y.join("–")})`;
    const kept = state.share < 1 ? ` --threshold ${Number(state.share.toFixed(4))}` : "";
    command = `${data.images[state.image].command} --point ${middle(x)},${middle(y)} --layer ${state.layer} ` +
      `--head ${state.map}${kept}${state.smooth ? " --smooth" : ""} -o ${fileName()}`;
  }
  part("from").textContent = from + (state.pinned ? ", pinned" : "");
  part("best").textContent = best < 0 ? "none" : `${percent(row.most)} at ${placeOf(best)}`;
  part("cls").textContent = percent(row.cls);
  const step = row.most / row.steps, other = state.target;
  part("under").textContent = other === null ? "–"
    : `${percent(row.weights[other] * step, step)} at ${placeOf(other)}`;
  part("as-command").hidden = isClass;
  part("command").textContent = command;
  const [, counted, range] = layerSaid().match(/^layer (.*) (\(.*\))$/), whole = made("span");
  whole.className = "whole";
  whole.textContent = range;
  part("layer-said").replaceChildren(`${counted} `, whole);
  part("share-said").textContent = Math.round(100 * state.share) + "% of the attention";
  part("opacity-said").textContent = Math.round(100 * state.opacity) + "%";
  part("heads-title").textContent = `All heads of ${layerSaid()}`;
  part("precision").textContent = "The numbers of the strongest patch and of the class token are exact; those of the " +
    `other patches are held in ${row.steps.toLocaleString("en")} steps of the strongest.`;
}
function say() {
  part("status").textContent = `From ${part("from").textContent}: strongest ${part("best").textContent}`;
}

// ---- The page follows the state ------------------------------------------------------------------------------------

const made = (tag) => document.createElement(tag);
const headButtons = names.slice(2).map((name) => {
  const [button, canvas, label, words, most] = ["button", "canvas", "span", "span", "span"].map(made);
  button.type = "button";
  words.textContent = `Head ${name}`;
  most.className = "number";
  label.append(words, most);
  button.append(canvas, label);
  button.addEventListener("click", () => change({ map: name }));
  part("heads").append(button);
  return { name, button, canvas, most };
});

function update() {
  const withHeads = mapsOf(state.layer)[0] !== undefined;
  if (!withHeads && !["mean", "rollout"].includes(state.map)) state.map = "mean";
  const row = rowOf(state.map), patch = state.query - 1;
  paint(part("heat"), row, 16, false);
  drawScale(row);
  write(row);
  headButtons.forEach((each) => {
    each.button.hidden = !withHeads;
    each.button.setAttribute("aria-pressed", each.name === state.map);
    if (!withHeads) return;
    const own = rowOf(each.name);
    paint(each.canvas, own, 8, true);
    each.most.textContent = percent(own.most).replace(" ", "\u00a0");
  });
  part("no-heads").hidden = withHeads;
  const mark = part("query"), target = part("target");
  mark.hidden = state.query === 0;
  mark.className = state.pinned ? "pinned" : "";
  target.hidden = state.target === null || state.target === patch;
  for (const [element, place] of [[mark, patch], [target, state.target]]) {
    element.style.left = (100 * (place % columns)) / columns + "%";
    element.style.top = (100 * Math.floor(place / columns)) / rows + "%";
  }
  stage.classList.toggle("grey", state.grey);
  document.body.classList.toggle("smooth", state.smooth);
  part("lines").hidden = !state.grid;
  part("layer").value = state.layer;
  part("map").value = state.map;
  Array.from(part("map").options).forEach((option, number) => { option.disabled = number > 1 && !withHeads; });
  part("release").disabled = !state.pinned;
  part("points").querySelectorAll("button").forEach((button) => {
    button.setAttribute("aria-pressed", state.pinned && Number(button.dataset.query) === state.query);
  });
}
function change(values) {
  Object.assign(state, values);
  update();
}
function pin(query) {
  change({ query, pinned: true });
  say();
}
// Pins a query; the one that is pinned already is released.
function toggle(query) {
  if (state.pinned && state.query === query) change({ pinned: false, target: null });
  else pin(query);
}

// ---- The image that is shown ---------------------------------------------------------------------------------------

function pointButton(text, query) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = text;
  button.dataset.query = query;
  button.addEventListener("click", () => toggle(query));
  return button;
}
const queryOf = ([row, column]) => 1 + row * columns + column;
function showImage(number) {
  const image = data.images[number];
  part("name").textContent = image.name;
  part("photo").src = image.picture;
  const buttons = image.points.map((point, index) => pointButton(index + 1, queryOf(point)));
  buttons.forEach((button, index) => { button.title = `Reference point ${index + 1}: ${placeOf(queryOf(image.points[index]) - 1)}`; });
  if (data.classToken) buttons.push(pointButton("class token", 0));
  part("points").replaceChildren(...buttons);
  part("gallery").querySelectorAll("button").forEach((button, index) => {
    button.setAttribute("aria-pressed", index === number);
  });
  const isKept = state.pinned || !image.points.length;  // what was pinned stays so in the next image
  change({ image: number, query: isKept ? state.query : queryOf(image.points[0]), target: null });
}
function showGallery() {
  part("gallery").hidden = data.images.length < 2;
  if (data.images.length < 2) return;
  data.images.forEach((image, number) => {
    const [button, picture, name] = ["button", "img", "span"].map(made);
    button.type = "button";
    button.title = image.name;
    picture.src = image.thumbnail;
    picture.alt = "";
    name.textContent = image.name.split("/").pop();
    button.append(picture, name);
    button.addEventListener("click", () => showImage(number));
    part("gallery").append(button);
  });
}
