"use strict";
// Shows what data.js holds (the constant PAGE). Controls hold the state; `show` draws it.

const ATTACKS = {
  worst_case: "the strongest attack on each clip",
  pgd: "PGD, many small steps",
  fgsm: "FGSM, a single step",
  noise_linf: "random noise of the same size (control)",
};
const DASHES = ["", "7 4", "2 3", "10 3 2 3", "4 2", "1 2"];
const SVG = "http://www.w3.org/2000/svg";

const at = (id) => document.getElementById(id);
const percent = (share) => `${Math.round(share * 100)}%`;
const decibel = (eps) => `${Number((eps * PAGE.dynamic_range_db).toPrecision(2))} dB`;

function make(name, attributes = {}, text = "") {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = text;
  return element;
}

function draw(parent, name, attributes, text = "") {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = text;
  return parent.appendChild(element);
}

function fill(select, options) {
  select.replaceChildren(...options.map(([value, text]) => make("option", { value }, text)));
}

function strongest(probabilities) {
  return probabilities.indexOf(Math.max(...probabilities));
}

function heard(probabilities) {
  const k = strongest(probabilities);
  return `${PAGE.genres[k]} (${percent(probabilities[k])})`;
}

// ---------- what is chosen

const clip = () => PAGE.clips[Number(at("clip").value)];
const own = () => clip().networks[at("network").value];
const view = () => own().views[Number(at("eps").value)];

function attackOnSound() {
  const ratio = document.querySelector("input[name=ratio]:checked").value;
  return own().attacks.find((attack) => attack.snr_db === Number(ratio));
}

function listClips() {
  const numbered = PAGE.clips.map((each, i) => [i, each]);
  const same = numbered.filter(([, each]) => each.genre === at("genre").value);
  fill(at("clip"), same.map(([i, each]) => [i, `${each.track} at ${Math.round(each.start_s)} s`]));
}

// ---------- looking

function showEps() {
  const { eps } = view();
  const told = eps ? `at most ${decibel(eps)} (eps = ${eps})` : "0 dB: no attack";
  at("eps-told").textContent = told;
  at("eps").setAttribute("aria-valuetext", told);
}

function showPictures() {
  const { spectrogram, maps } = view();
  const kind = at("explains").value;
  const shown = at("show-map").checked && maps[kind] !== null;
  at("spectrogram").src = spectrogram;
  at("spectrogram").alt = `Spectrogram of ${clip().track}, ${at("eps-told").textContent}`;
  at("map").hidden = !shown;
  if (shown) at("map").src = maps[kind];
  at("map").alt = shown ? `Map of the evidence for ${explained()}` : "";
  at("pictures").classList.toggle("mapped", shown);
  at("level-bar").parentElement.classList.toggle("mapped-key", shown);
  at("evidence-key").hidden = !shown;
  showMapText(kind);
}

function explained() {
  const named = PAGE.genres[strongest(view().probabilities)];
  return at("explains").value === "true" ? clip().genre : named;
}

function showMapText(kind) {
  const { eps, maps, overlap } = view();
  let told = `Where the network finds evidence for ${explained()}.`;
  if (maps[kind] === null) told = `No map: nothing in this picture speaks for ${explained()}.`;
  else if (eps && overlap[kind] !== null) {
    told += ` Of its brightest ${percent(PAGE.top_share)}, ${percent(overlap[kind])} lie where`
      + ` they lay before the attack; unrelated maps would share ${percent(PAGE.top_share)}.`;
  }
  at("map-told").textContent = told;
}

function showAnswer() {
  const { eps, probabilities, noise } = view();
  const named = PAGE.genres[strongest(probabilities)];
  const right = named === clip().genre;
  at("answer").replaceChildren(
    `The network “${at("network").value}” names `,
    make("strong", {}, heard(probabilities)),
    right ? ": right." : `: wrong, it is ${clip().genre}.`,
    eps ? ` Before the attack: ${heard(own().views[0].probabilities)}.` : "",
  );
  at("noise-told").textContent = eps
    ? `Control: random noise of at most ${decibel(eps)} instead of the attack gives ${heard(noise)}.`
    : "Move the slider to let the attacker in.";
}

function showBars() {
  const { probabilities } = view();
  const named = strongest(probabilities);
  const rows = PAGE.genres.map((genre, k) => {
    const row = make("tr", k === named ? { class: "named" } : {});
    const head = row.appendChild(make("th", { scope: "row" }, genre));
    const tags = [genre === clip().genre && "true", k === named && "named"].filter(Boolean);
    if (tags.length) head.append(make("span", { class: "tag" }, ` ${tags.join(", ")}`));
    const bar = make("div", { class: "bar", style: `width: ${probabilities[k] * 100}%` });
    row.appendChild(make("td", { class: "track" })).append(bar);
    row.append(make("td", { class: "share" }, percent(probabilities[k])));
    return row;
  });
  document.querySelector("#bars tbody").replaceChildren(...rows);
}

// ---------- listening

function load(id, source) {
  const player = at(id);
  player.hidden = !source;
  if (!source) player.removeAttribute("src");
  else if (player.getAttribute("src") !== source) player.src = source;
}

function showSounds() {
  if (!PAGE.has_audio) return;
  load("sound-clip", clip().sound);
  load("sound-kept", own().parts.kept);
  load("sound-left-out", own().parts.left_out);
  at("parts").hidden = !own().parts.kept;
  at("no-parts").hidden = Boolean(own().parts.kept);
  showAttackOnSound();
  showNearest();
}

function showAttackOnSound() {
  const attack = attackOnSound();
  const changed = attack.reached_db !== null;
  load("sound-attacked", attack.attacked);
  load("sound-difference", changed ? attack.difference : null);
  at("difference-title").textContent = changed
    ? `What was changed, ${Math.round(attack.gain_db)} dB louder` : "Nothing was changed.";
  at("attack-told").textContent = `As this file, the network hears ${heard(attack.probabilities)};`
    + ` with white noise of the same loudness instead, ${heard(attack.noise)}.`
    + ` The clip is ${clip().genre}.`;
}

function showNearest() {
  const { eps, nearest, probabilities } = view();
  load("sound-nearest", nearest && nearest.sound);
  at("nearest-title").textContent = nearest
    ? `The sound nearest to the picture at ${decibel(eps)}`
    : "The slider stands at 0 dB: move it to hear the sound nearest to the attacked picture.";
  at("nearest-told").textContent = nearest
    ? `In the attacked picture the network sees ${heard(probabilities)};`
      + ` in this sound it hears ${heard(nearest.probabilities)}.` : "";
}

function pauseOthers(event) {
  for (const player of document.querySelectorAll("audio")) {
    if (player !== event.target) player.pause();
  }
}

// ---------- the chart

const levels = () => PAGE.clips[0].networks[PAGE.networks[0]].views.map((each) => each.eps);

function points(network) {
  const chosen = at("attack").value;
  const mine = PAGE.robustness.filter((row) => row.checkpoint === network);
  return mine.filter((row) => row.attack === chosen || row.attack === "clean")
    .map((row) => ({ ...row, place: levels().findIndex((eps) => Math.abs(eps - row.eps) < 1e-9) }))
    .filter((row) => row.place >= 0)
    .sort((a, b) => a.place - b.place);
}

function marker(parent, k, x, y) {
  const colour = `var(--network${k % 6})`;
  const r = 5;
  const shapes = [
    ["circle", { cx: x, cy: y, r }],
    ["rect", { x: x - r, y: y - r, width: 2 * r, height: 2 * r }],
    ["path", { d: `M${x} ${y - r - 1}l${r + 1} ${2 * r + 1}h${-2 * r - 2}z` }],
    ["path", { d: `M${x} ${y - r - 1}l${r + 1} ${r + 1}l${-r - 1} ${r + 1}l${-r - 1} ${-r - 1}z` }],
  ];
  const [name, attributes] = shapes[k % shapes.length];
  draw(parent, name, { ...attributes, fill: colour });
}

function drawAxes(svg, x, y, box) {
  const step = x(1) - x(0);
  draw(svg, "rect", { class: "now", x: x(Number(at("eps").value)) - step / 2, y: box.top,
    width: step, height: box.bottom - box.top });
  for (const share of [0, 0.25, 0.5, 0.75, 1]) {
    draw(svg, "line", { class: "axis", x1: box.left, x2: box.right, y1: y(share), y2: y(share) });
    draw(svg, "text", { x: box.left - 6, y: y(share) + 4, "text-anchor": "end" }, percent(share));
  }
  levels().forEach((eps, k) => draw(svg, "text", { x: x(k), y: box.bottom + 18,
    "text-anchor": "middle" }, String(Number((eps * PAGE.dynamic_range_db).toPrecision(2)))));
  const middle = (box.left + box.right) / 2;
  draw(svg, "text", { x: middle, y: box.bottom + 38, "text-anchor": "middle" },
    "largest change of each point (dB)");
  draw(svg, "text", { x: 2, y: box.top - 10 }, "clips heard rightly");
  const chance = y(1 / PAGE.genres.length);
  draw(svg, "line", { class: "chance", x1: box.left, x2: box.right, y1: chance, y2: chance });
  draw(svg, "text", { x: box.right, y: chance - 5, "text-anchor": "end" }, "chance");
}

function drawNetwork(svg, network, k, x, y) {
  const colour = `var(--network${k % 6})`;
  const shift = (k - (PAGE.networks.length - 1) / 2) * 7;
  const rows = points(network);
  const line = rows.map((row) => `${x(row.place) + shift},${y(row.accuracy)}`).join(" ");
  draw(svg, "polyline", { points: line, fill: "none", stroke: colour, "stroke-width": 2,
    "stroke-dasharray": DASHES[k % DASHES.length] });
  for (const row of rows) {
    const here = x(row.place) + shift;
    if (row.low !== null) {
      draw(svg, "line", { x1: here, x2: here, y1: y(row.low), y2: y(row.high), stroke: colour,
        "stroke-width": 2 });
    }
    marker(svg, k, here, y(row.accuracy));
  }
}

function drawLegend() {
  const list = make("ul", { class: "legend" });
  PAGE.networks.forEach((network, k) => {
    const item = list.appendChild(make("li"));
    const svg = draw(item, "svg", { viewBox: "0 0 48 16", height: 16, "aria-hidden": "true" });
    draw(svg, "line", { x1: 0, x2: 48, y1: 8, y2: 8, stroke: `var(--network${k % 6})`,
      "stroke-width": 2, "stroke-dasharray": DASHES[k % DASHES.length] });
    marker(svg, k, 24, 8);
    item.append(` ${network}`);
  });
  return list;
}

function drawChart() {
  const width = at("chart").clientWidth;
  if (!PAGE.robustness.length || !width) return;
  const height = 340;
  const box = { left: 44, right: width - 8, top: 30, bottom: height - 48 };
  const step = (box.right - box.left) / levels().length;
  const x = (k) => box.left + (k + 0.5) * step;
  const y = (share) => box.bottom - share * (box.bottom - box.top);
  const svg = document.createElementNS(SVG, "svg");
  for (const [key, value] of Object.entries({ viewBox: `0 0 ${width} ${height}`, height,
    role: "img", "aria-label": "Accuracy over the size of the change, one line a network; the "
    + "numbers are in the table below" })) svg.setAttribute(key, value);
  drawAxes(svg, x, y, box);
  PAGE.networks.forEach((network, k) => drawNetwork(svg, network, k, x, y));
  at("chart").replaceChildren(drawLegend(), svg);
  showNumbers();
}

function interval(row) {
  const ends = row.low === null ? "" : ` [${percent(row.low)}, ${percent(row.high)}]`;
  return percent(row.accuracy) + ends;
}

function showNumbers() {
  const head = make("tr");
  head.append(...["network", "largest change", "right [95% interval]", "clips", "tracks"]
    .map((name) => make("th", { scope: "col" }, name)));
  const rows = PAGE.networks.flatMap(points).map((row) => {
    const line = make("tr");
    line.append(...[row.checkpoint, decibel(row.eps), interval(row), row.n_segments, row.n_tracks]
      .map((text) => make("td", {}, text)));
    return line;
  });
  at("numbers").replaceChildren(head, ...rows);
}

// ---------- at the start

function show() {
  showEps();
  showPictures();
  showAnswer();
  showBars();
  showSounds();
  drawChart();
}

function tellCorpus() {
  const embedded = PAGE.corpus === "synthetic";
  at("corpus").textContent = embedded
    ? "Corpus: synthetic, the music that this project composes itself by rules and plays on sampled"
      + " instruments. What is seen here says nothing about recorded music."
    : `Corpus: ${PAGE.corpus}. Run: ${PAGE.run}.`;
  at("silent").hidden = PAGE.has_audio;
  at("silent").textContent = `The corpus ${PAGE.corpus} holds spectrograms only: there is nothing to`
    + " listen to here.";
  at("players").hidden = !PAGE.has_audio;
  at("rights").hidden = embedded || !PAGE.has_audio;
  at("rights").textContent = "These sounds are excerpts of recordings that belong to others: do not"
    + " pass this folder on without their consent.";
}

function placeTicks() {
  for (const [text, place] of PAGE.ticks.hertz) {
    at("hertz").append(make("span", { style: `bottom: ${place * 100}%` }, text));
  }
  for (const [text, place] of PAGE.ticks.seconds) {
    at("seconds").append(make("span", { style: `left: ${place * 100}%` }, text));
  }
}

function offerLevels() {
  at("eps").max = levels().length - 1;
  at("eps-ticks").append(...levels().map((eps) => make("span", {}, decibel(eps).split(" ")[0])));
}

function offerRatios() {
  if (!PAGE.has_audio) return;
  for (const [k, { snr_db: ratio }] of own().attacks.entries()) {
    const label = make("label");
    const input = make("input", { type: "radio", name: "ratio", value: ratio });
    input.checked = k === 0;
    label.append(input, `${ratio} dB`);
    at("ratios").append(label);
  }
}

function offerChoices() {
  const genres = PAGE.genres.filter((genre) => PAGE.clips.some((each) => each.genre === genre));
  fill(at("genre"), genres.map((genre) => [genre, genre]));
  fill(at("network"), PAGE.networks.map((network) => [network, network]));
  const measured = Object.entries(ATTACKS)
    .filter(([name]) => PAGE.robustness.some((row) => row.attack === name));
  fill(at("attack"), measured);
  at("no-chart").hidden = PAGE.robustness.length > 0;
  at("chart-part").hidden = PAGE.robustness.length === 0;
  listClips();
  offerLevels();
  offerRatios();
}

function start() {
  tellCorpus();
  placeTicks();
  offerChoices();
  document.addEventListener("play", pauseOthers, true);
  at("genre").addEventListener("input", listClips);
  for (const control of document.querySelectorAll("select, input")) {
    control.addEventListener("input", show);
  }
  new ResizeObserver(drawChart).observe(at("chart"));
  show();
}

start();
