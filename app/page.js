"use strict";
// Shows data.js (the constant PAGE). The controls hold the state; `show` draws it.

const DASHES = ["", "7 4", "2 3", "10 3 2 3", "4 2", "1 2"];
const SVG = "http://www.w3.org/2000/svg";

const OWN = "your tracks";  // their true genre is unknown: attacks start at the predicted one

const at = (id) => document.getElementById(id);
const percent = (share) => `${Math.round(share * 100)}%`;
const decibel = (eps) => `${Number((eps * PAGE.dynamic_range_db).toPrecision(2))} dB`;

function filled(element, attributes, text) {
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = text;
  return element;
}

const make = (name, attributes = {}, text = "") =>
  filled(document.createElement(name), attributes, text);
const makeSvg = (name, attributes, text = "") =>
  filled(document.createElementNS(SVG, name), attributes, text);
const draw = (parent, name, attributes, text) =>
  parent.appendChild(makeSvg(name, attributes, text));

function fill(select, options) {
  select.replaceChildren(...options.map(([value, text]) => make("option", { value }, text)));
}

function strongest(probabilities) {
  return probabilities.indexOf(Math.max(...probabilities));
}

function prediction(probabilities) {
  const k = strongest(probabilities);
  return `${PAGE.genres[k]} (${percent(probabilities[k])})`;
}

// ---------- the selection

const segment = () => PAGE.segments[Number(at("segment").value)];
const group = (each) => (each.own ? OWN : each.genre);
const ofModel = () => segment().models[at("model").value];
const view = () => ofModel().views[Number(at("eps").value)];

function waveformAttack() {
  const ratio = document.querySelector("input[name=ratio]:checked").value;
  return ofModel().attacks.find((attack) => attack.snr_db === Number(ratio));
}

function listSegments() {
  const numbered = PAGE.segments.map((each, i) => [i, each]);
  const same = numbered.filter(([, each]) => group(each) === at("genre").value);
  const options = same.map(([i, each]) => [i, `${each.track} at ${Math.round(each.start_s)} s`]);
  fill(at("segment"), options);
}

// ---------- spectrogram, map and prediction

function showEps() {
  const { eps } = view();
  const text = eps ? `at most ${decibel(eps)} (eps = ${eps})` : "0 dB: no attack";
  at("eps-text").textContent = text;
  at("eps").setAttribute("aria-valuetext", text);
}

function showPictures() {
  const { spectrogram, maps } = view();
  const kind = at("explains").value;
  const shown = at("show-map").checked && maps[kind] !== null;
  at("spectrogram").src = spectrogram;
  at("spectrogram").alt = `Spectrogram of ${segment().track}, ${at("eps-text").textContent}`;
  at("map").hidden = !shown;
  if (shown) at("map").src = maps[kind];
  at("map").alt = shown ? `Map of the evidence for ${explained()}` : "";
  at("pictures").classList.toggle("mapped", shown);
  at("level-bar").parentElement.classList.toggle("mapped-key", shown);
  at("evidence-key").hidden = !shown;
  showMapText(kind);
}

function explained() {
  const predicted = PAGE.genres[strongest(view().probabilities)];
  return at("explains").value === "true" ? segment().genre : predicted;
}

function showMapText(kind) {
  const { eps, maps, overlap } = view();
  let text = `Evidence for ${explained()}.`;
  if (maps[kind] === null) text = `Empty map: no evidence for ${explained()} in this spectrogram.`;
  else if (eps && overlap[kind] !== null) {
    text += ` ${percent(overlap[kind])} of its highest ${percent(PAGE.top_share)} are in the same`
      + ` place as without attack; unrelated maps share ${percent(PAGE.top_share)}.`;
  }
  at("map-text").textContent = text;
}

function showAnswer() {
  const { eps, probabilities, noise } = view();
  const correct = PAGE.genres[strongest(probabilities)] === segment().genre;
  const verdict = correct ? ": correct." : `: wrong, the true genre is ${segment().genre}.`;
  at("answer").replaceChildren(
    `Model “${at("model").value}” predicts `,
    make("strong", {}, prediction(probabilities)),
    segment().own ? "." : verdict,
    eps ? ` Without attack: ${prediction(ofModel().views[0].probabilities)}.` : "",
  );
  at("noise-text").textContent = eps
    ? `Control: uniform noise of at most ${decibel(eps)} instead of the attack:`
      + ` ${prediction(noise)}.`
    : "Move the slider to attack the segment.";
}

function showBars() {
  const { probabilities } = view();
  const predicted = strongest(probabilities);
  const rows = PAGE.genres.map((genre, k) => {
    const row = make("tr", k === predicted ? { class: "predicted" } : {});
    const head = row.appendChild(make("th", { scope: "row" }, genre));
    const isTrue = !segment().own && genre === segment().genre;
    const tags = [isTrue && "true", k === predicted && "predicted"];
    const text = tags.filter(Boolean).join(", ");
    if (text) head.append(make("span", { class: "tag" }, ` ${text}`));
    const bar = make("div", { class: "bar", style: `width: ${probabilities[k] * 100}%` });
    row.appendChild(make("td", { class: "track" })).append(bar);
    row.append(make("td", { class: "share" }, percent(probabilities[k])));
    return row;
  });
  document.querySelector("#bars tbody").replaceChildren(...rows);
}

// ---------- sounds

function load(id, source) {
  const player = at(id);
  player.hidden = !source;
  if (!source) player.removeAttribute("src");
  else if (player.getAttribute("src") !== source) player.src = source;
}

function showSounds() {
  if (!PAGE.has_audio) return;
  const { parts } = ofModel();
  load("sound-clean", segment().sound);
  load("sound-kept", parts.kept);
  load("sound-removed", parts.removed);
  at("parts").hidden = !parts.kept;
  at("no-parts").hidden = Boolean(parts.kept);
  showWaveformAttack();
  showResynthesized();
}

function showWaveformAttack() {
  const attack = waveformAttack();
  const changed = attack.reached_db !== null;
  load("sound-adversarial", attack.adversarial);
  load("sound-difference", changed ? attack.difference : null);
  at("difference-title").textContent = changed
    ? `The perturbation, amplified by ${Math.round(attack.gain_db)} dB` : "Nothing was changed.";
  at("attack-text").textContent = `Prediction for this file: ${prediction(attack.probabilities)};`
    + ` with white noise at the same ratio: ${prediction(attack.noise)}.`
    + (segment().own ? "" : ` True genre: ${segment().genre}.`);
}

function showResynthesized() {
  const { eps, probabilities } = view();
  const resynthesized = ofModel().resynthesized[Number(at("eps").value)];
  load("sound-resynthesized", resynthesized && resynthesized.sound);
  at("resynthesized-title").textContent = resynthesized
    ? `The sound resynthesized from the adversarial spectrogram at ${decibel(eps)}`
    : "The slider is at 0 dB: move it to play the sound of an adversarial spectrogram.";
  at("resynthesized-text").textContent = resynthesized
    ? `Prediction for the spectrogram: ${prediction(probabilities)};`
      + ` for this sound: ${prediction(resynthesized.probabilities)}.` : "";
}

function pauseOthers(event) {
  for (const player of document.querySelectorAll("audio")) {
    if (player !== event.target) player.pause();
  }
}

// ---------- the chart

const levels = () => PAGE.segments[0].models[PAGE.models[0]].views.map((each) => each.eps);

function points(model) {
  const chosen = at("attack").value;
  const mine = PAGE.robustness.filter((row) => row.checkpoint === model);
  return mine.filter((row) => row.attack === chosen || row.attack === "clean")
    .map((row) => ({ ...row, place: levels().findIndex((eps) => Math.abs(eps - row.eps) < 1e-9) }))
    .filter((row) => row.place >= 0)
    .sort((a, b) => a.place - b.place);
}

function marker(parent, k, x, y) {
  const colour = `var(--model${k % 6})`;
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
    "perturbation budget (dB)");
  draw(svg, "text", { x: 2, y: box.top - 10 }, "accuracy");
  const chance = y(1 / PAGE.genres.length);
  draw(svg, "line", { class: "chance", x1: box.left, x2: box.right, y1: chance, y2: chance });
  draw(svg, "text", { x: box.right, y: chance - 5, "text-anchor": "end" }, "chance");
}

function drawModel(svg, model, k, x, y) {
  const colour = `var(--model${k % 6})`;
  const shift = (k - (PAGE.models.length - 1) / 2) * 7;
  const rows = points(model);
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
  PAGE.models.forEach((model, k) => {
    const item = list.appendChild(make("li"));
    const svg = draw(item, "svg", { viewBox: "0 0 48 16", height: 16, "aria-hidden": "true" });
    draw(svg, "line", { x1: 0, x2: 48, y1: 8, y2: 8, stroke: `var(--model${k % 6})`,
      "stroke-width": 2, "stroke-dasharray": DASHES[k % DASHES.length] });
    marker(svg, k, 24, 8);
    item.append(` ${model}`);
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
  const svg = makeSvg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img",
    "aria-label": "Accuracy over the perturbation budget, one line per model; the numbers are in"
    + " the table below" });
  drawAxes(svg, x, y, box);
  PAGE.models.forEach((model, k) => drawModel(svg, model, k, x, y));
  at("chart").replaceChildren(drawLegend(), svg);
  showNumbers();
}

function interval(row) {
  const ends = row.low === null ? "" : ` [${percent(row.low)}, ${percent(row.high)}]`;
  return percent(row.accuracy) + ends;
}

function showNumbers() {
  const head = make("tr");
  head.append(...["model", "budget", "accuracy [95% CI]", "segments", "tracks"]
    .map((name) => make("th", { scope: "col" }, name)));
  const rows = PAGE.models.flatMap(points).map((row) => {
    const line = make("tr");
    line.append(...[row.checkpoint, decibel(row.eps), interval(row), row.n_segments, row.n_tracks]
      .map((text) => make("td", {}, text)));
    return line;
  });
  at("numbers").replaceChildren(head, ...rows);
}

// ---------- start

function show() {
  at("explains").options[1].text = segment().own
    ? "the genre predicted before attacks" : "the true genre";
  showEps();
  showPictures();
  showAnswer();
  showBars();
  showSounds();
  drawChart();
}

function showCorpus() {
  at("corpus").textContent = PAGE.embedded
    ? "Corpus: synthetic, composed by rules and played by sampled instruments. Results on it say"
      + " nothing about recorded music."
    : `Corpus: ${PAGE.corpus}. Run: ${PAGE.run}.`;
  at("silent").hidden = PAGE.has_audio;
  at("silent").textContent = `The corpus ${PAGE.corpus} has spectrograms and no audio.`;
  at("players").hidden = !PAGE.has_audio;
  const owned = PAGE.embedded && !PAGE.segments.some((each) => each.own);
  at("rights").hidden = owned || !PAGE.has_audio;
  at("rights").textContent = "These sounds are excerpts of copyrighted recordings: do not share this"
    + " folder without the consent of their owners.";
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
  for (const [k, { snr_db: ratio }] of ofModel().attacks.entries()) {
    const label = make("label");
    const input = make("input", { type: "radio", name: "ratio", value: ratio });
    input.checked = k === 0;
    label.append(input, `${ratio} dB`);
    at("ratios").append(label);
  }
}

function offerChoices() {
  const groups = new Set(PAGE.segments.map(group));
  const genres = [...PAGE.genres, OWN].filter((genre) => groups.has(genre));
  fill(at("genre"), genres.map((genre) => [genre, genre]));
  fill(at("model"), PAGE.models.map((model) => [model, model]));
  fill(at("attack"), PAGE.attacks);
  at("no-chart").hidden = PAGE.robustness.length > 0;
  at("chart-part").hidden = PAGE.robustness.length === 0;
  listSegments();
  offerLevels();
  offerRatios();
}

function start() {
  showCorpus();
  placeTicks();
  offerChoices();
  document.addEventListener("play", pauseOthers, true);
  at("genre").addEventListener("input", listSegments);
  for (const control of document.querySelectorAll("select, input")) {
    control.addEventListener("input", show);
  }
  new ResizeObserver(drawChart).observe(at("chart"));
  show();
}

start();
