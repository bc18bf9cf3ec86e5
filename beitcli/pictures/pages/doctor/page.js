const data = pageData();
const count = (number) => number.toLocaleString("en");
const plural = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;

// An element with a class and a text, which is never read as HTML.
const element = (tag, className = "", text = "") => {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.textContent = text;
  return made;
};

const longest = 24;  // letters of a word that fit on the line of a telephone

// An element with a text that is broken at spaces, and in words that may not fit on a line; what stands in backticks
// is code.
const prose = (tag, className, text) => {
  const made = element(tag, className), parts = text.split("`");
  if (parts.length % 2 === 0) return element(tag, className, text);
  parts.forEach((part, number) => {
    const into = number % 2 ? element("code") : made;
    part.split(" ").forEach((word, place) => {
      if (place) into.append(" ");
      into.append(/[-/]/.test(word) && word.length <= longest ? element("span", "word", word) : word);
    });
    if (into !== made) made.append(into);
  });
  return made;
};

const figure = (image) => {
  const made = element("figure");
  const frame = element("div", image.picture ? "frame" : "frame none", image.missing);
  if (image.picture) {
    const picture = document.createElement("img");
    picture.src = image.picture;
    picture.alt = "";
    frame.append(picture);
  }
  const caption = element("figcaption");
  const name = element("span", "name", image.path.split("/").slice(-2).join("/"));
  name.title = image.path;
  caption.append(name);
  if (image.why) caption.append(element("span", "why", image.why));
  made.append(frame, caption);
  return made;
};

const strip = (images) => {
  const made = element("div", "strip");
  made.append(...images.map(figure));
  return made;
};

const bars = (into, pairs) => {
  const most = Math.max(1, ...pairs.map(([, number]) => number));
  for (const [name, number] of pairs) {
    const bar = element("div", "bar");
    bar.style.width = `${(100 * number) / most}%`;
    if (!number) bar.style.visibility = "hidden";
    into.append(element("div", "name", name), bar, element("div", "number", count(number)));
  }
};

// Verdict and facts
const warnings = data.findings.filter((finding) => finding.severity === "warning").length;
const notes = data.findings.length - warnings;
const unreadable = data.images - data.readable;
document.getElementById("verdict").textContent = data.findings.length
  ? `${plural(data.images, "image")}: ${plural(warnings, "warning")} and ${plural(notes, "note")}` +
    (unreadable ? `; ${count(unreadable)} cannot be read.` : "; all can be read.")
  : `${plural(data.images, "image")}: nothing is wrong with them.`;
const list = (counts) => Object.entries(counts).map(([name, number]) => `${name} ${count(number)}`).join(", ");
const facts = [
  ["Images", `${count(data.images)}, ${data.size}`],
  ["Splits", Object.keys(data.splits).length > 1 ? list(data.splits) : ""],
  ["Formats", list(data.formats)],
  ["Shorter side", data.sizes.median ? `${data.sizes.least} to ${data.sizes.greatest}, median ${data.sizes.median}` : ""],
  ["Classes", data.classes.map((each) => count(each.of)).join(", ")],
];
for (const [name, text] of facts) {
  if (!text) continue;
  const pair = element("div");
  pair.append(element("dt", "", name), element("dd", "", text));
  document.getElementById("facts").append(pair);
}

for (const finding of data.findings) {
  const made = element("article", `finding ${finding.severity} ${finding.kind}`);
  const kind = finding.severity === "warning" ? "Warning" : "Note";
  made.append(prose("h2", "", `${kind}: ${finding.what}`), prose("p", "soft", finding.way_out));
  if (finding.images.length) made.append(strip(finding.images));
  made.append(...finding.pairs.map(strip));
  if (/^(overlap|duplicates)-/.test(finding.kind)) {
    const link = element("a", "", "See them side by side");
    link.href = "#copies";
    made.append(link);
  }
  const shown = finding.images.length + finding.pairs.length;
  if (finding.total > shown) {
    const named = finding.named < finding.total ? `the first ${count(finding.named)}` : "all";
    made.append(element("p", "soft more", `${count(finding.total - shown)} more; --json names ${named}.`));
  }
  document.getElementById("findings").append(made);
}

if (data.groups.length) {
  document.getElementById("copies").hidden = false;
  document.getElementById("copies-note").textContent =
    `${plural(data.all_groups, "group")}` + (data.all_groups > data.groups.length ? `, ${data.groups.length} shown.` : ".");
  for (const group of data.groups) {
    const made = element("div", "group");
    const across = group.splits.length > 1 ? `, in ${group.splits.join(" and ")}` : "";
    const copies = group.counts.map(([same, number]) => (group.counts.length > 1 ? `${count(number)} ${same}` : same));
    const how = group.counts.length > 1 ? `copies: ${copies.join(", ")}` : copies[0];
    made.append(element("div", "", `${count(group.total)} images${across}; ${how}`), strip(group.images));
    const left = group.total - group.images.length;
    if (left) made.append(element("p", "soft more", `and ${count(left)} more`));
    document.getElementById("groups").append(made);
  }
}

if (data.sizes.histogram) {
  document.getElementById("sizes").hidden = false;
  bars(document.getElementById("size-bars"), Object.entries(data.sizes.histogram));
}

for (const each of data.classes) {
  const section = document.getElementById("classes");
  section.hidden = false;
  const made = element("details");
  made.open = each.of <= 20;
  const of = Object.keys(data.splits).length > 1 ? ` of split ${each.split}` : "";
  made.append(element("summary", "", `Images of ${plural(each.of, "class").replace("classs", "classes")}${of}`));
  const box = element("div", "bars");
  bars(box, each.counts);
  made.append(box);
  if (each.of > each.counts.length) made.append(element("p", "soft", `The largest ${each.counts.length} are shown.`));
  section.append(made);
}

if (data.aside.length) {
  document.getElementById("aside").hidden = false;
  document.getElementById("aside-list").append(...data.aside.map((line) => element("li", "", line)));
}
