
// ---- Pointer and keys ----------------------------------------------------------------------------------------------

function patchAt(event) {
  const box = stage.getBoundingClientRect();
  const place = (at, begin, length, places) =>
    Math.min(places - 1, Math.max(0, Math.floor(((at - begin) / length) * places)));
  return place(event.clientY, box.top, box.height, rows) * columns + place(event.clientX, box.left, box.width, columns);
}
stage.addEventListener("pointermove", (event) => {
  if (event.pointerType === "touch") return;
  const patch = patchAt(event);
  if (state.pinned ? state.target !== patch : state.query !== patch + 1)
    change(state.pinned ? { target: patch } : { query: patch + 1, target: null });
});
stage.addEventListener("pointerleave", () => { if (state.target !== null) change({ target: null }); });
stage.addEventListener("click", (event) => {
  stage.focus({ preventScroll: true });
  toggle(patchAt(event) + 1);
});

function move(down, right) {
  if (state.query === 0) return pin(queryOf([Math.floor(rows / 2), Math.floor(columns / 2)]));
  const patch = state.query - 1, within = (place, places) => Math.min(places - 1, Math.max(0, place));
  return pin(queryOf([within(Math.floor(patch / columns) + down, rows), within((patch % columns) + right, columns)]));
}
const nextLayer = (by) => change({ layer: Math.min(data.depth - 1, Math.max(0, state.layer + by)) });
function nextMap(by) {
  const known = mapsOf(state.layer)[0] === undefined ? names.slice(0, 2) : names;
  change({ map: known[(known.indexOf(state.map) + by + known.length) % known.length] });
}
const arrows = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
const keys = { "[": () => nextLayer(-1), "]": () => nextLayer(1), ",": () => nextMap(-1), ".": () => nextMap(1),
  c: () => data.classToken && pin(0), Escape: () => change({ pinned: false, target: null }) };
// A character is as typed: many keyboards have [ and ] behind AltGr, which Windows tells as Ctrl+Alt, or behind Option.
const isTyped = (event) => !event.metaKey && (event.getModifierState("AltGraph") ||
  (!event.ctrlKey && (!event.altKey || event.key === "[" || event.key === "]")));
document.addEventListener("keydown", (event) => {
  if (!isTyped(event)) return;
  let act = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (event.key !== "Escape" && event.target.closest("input, select")) act = undefined;
  if (event.target === stage) {  // elsewhere arrows scroll, and Enter and the space bar press buttons
    if (arrows[event.key]) act = () => move(...arrows[event.key]);
    if (["Enter", " "].includes(event.key)) act = () => toggle(state.query);
  }
  if (!act) return;
  event.preventDefault();
  act();
});

// ---- Controls ------------------------------------------------------------------------------------------------------

part("layer").addEventListener("input", (event) => change({ layer: Number(event.target.value) }));
part("map").addEventListener("change", (event) => change({ map: event.target.value }));
part("share").addEventListener("input", (event) => change({ share: event.target.value / 100 }));
part("opacity").addEventListener("input", (event) => change({ opacity: event.target.value / 100 }));
for (const name of ["smooth", "grey", "grid"]) {
  part(name).checked = state[name];
  part(name).addEventListener("change", (event) => change({ [name]: event.target.checked }));
}
part("release").addEventListener("click", () => change({ pinned: false, target: null }));

// ---- The view as a picture -----------------------------------------------------------------------------------------

function drawView() {
  const photo = part("photo"), heat = part("heat"), scale = Math.max(1, Math.round(896 / photo.naturalWidth));
  const width = photo.naturalWidth * scale, height = photo.naturalHeight * scale, size = Math.round(width / 42);
  const canvas = made("canvas"), context = canvas.getContext("2d"), strip = Math.round(5 * size);
  canvas.width = width;
  canvas.height = height + strip;
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, canvas.height);
  if (state.grey) context.filter = "grayscale(1) brightness(.95)";
  context.drawImage(photo, 0, strip, width, height);
  context.filter = "none";
  context.imageSmoothingEnabled = state.smooth;
  context.drawImage(heat, 0, strip, width, height);
  if (state.query > 0) {
    const patch = state.query - 1, side = [width / columns, height / rows];
    const box = [(patch % columns) * side[0], strip + Math.floor(patch / columns) * side[1], ...side];
    for (const [colour, thick] of [["#fff", 6], ["#00619e", 3]]) {
      context.strokeStyle = colour;
      context.lineWidth = thick;
      context.strokeRect(...box);
    }
  }
  const lines = [data.images[state.image].name.split("/").pop(), data.model,
    `${layerSaid()}, ${nameOf(state.map)}, from ` +
    (state.query ? placeOf(state.query - 1) : "class token") + `, ${part("most").textContent}`];
  context.fillStyle = "#1d1d22";
  context.textBaseline = "middle";
  lines.forEach((line, number) => {
    context.font = `${number ? "" : "600 "}${size}px system-ui, sans-serif`;
    context.fillText(line, size / 2, (0.95 + 1.5 * number) * size, width - size);
  });
  return canvas;
}
copiesOnClick(part("copy"), () => part("command").textContent);
part("save").addEventListener("click", () => drawView().toBlob((blob) => {
  const link = made("a");
  link.href = URL.createObjectURL(blob);
  link.download = fileName();
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}));

// ---- Start ---------------------------------------------------------------------------------------------------------

for (const [name, value] of [["--rows", rows], ["--columns", columns], ["--shape", data.shape]])
  document.documentElement.style.setProperty(name, value);
part("model").textContent = data.model;
part("left-out").textContent = part("no-heads").textContent = data.leftOut;
part("left-out").hidden = !data.leftOut;
for (const id of ["cls-name", "cls", "key-cls"]) part(id).hidden = !data.classToken;
part("layer").max = data.depth - 1;
part("share").value = 100 * state.share;
part("opacity").value = 100 * state.opacity;
for (const name of names) {
  part("map").add(new Option(nameOf(name) + (name === "rollout" ? " to this layer" : ""), name));
}
showGallery();
showImage(0);
